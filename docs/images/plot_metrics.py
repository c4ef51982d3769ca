#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Draws loss curves of runs, read from metrics.jsonl.

Thin lines are the training loss, dots the validation loss, both in nats per
token. Needs matplotlib (Debian: python3-matplotlib).
"""

import argparse
import json
import subprocess

import matplotlib

matplotlib.use("svg")
from matplotlib import pyplot as plt  # noqa: E402


def read_losses(folder, kind):
    with open(folder + "/metrics.jsonl", encoding="utf-8") as lines:
        rows = [json.loads(line) for line in lines]
    rows = [row for row in rows if row["kind"] == kind]
    return [row["step"] for row in rows], [row["loss"] for row in rows]


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("out", help="the picture, an .svg")
    parser.add_argument("runs", nargs="+", metavar="LABEL=RUN_FOLDER")
    parser.add_argument("--title", default="preset tiny, default corpus")
    parser.add_argument("--token", default="byte", help="what a token is")
    parser.add_argument("--every", type=int, default=1,
                        help="training losses: every so many")
    options = parser.parse_args()
    matplotlib.rcParams["svg.hashsalt"] = "cubit"
    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"],
                            capture_output=True, text=True,
                            check=True).stdout.strip()
    figure, axes = plt.subplots(figsize=(7, 3.6))
    for index, argument in enumerate(options.runs):
        label, folder = argument.split("=", 1)
        color = f"C{index}"
        steps, losses = read_losses(folder, "train")
        axes.plot(steps[::options.every], losses[::options.every],
                  color=color, alpha=0.35, linewidth=0.8)
        axes.plot(*read_losses(folder, "validation"), "o-", color=color,
                  markersize=3, label=label)
    axes.set_xlabel("step")
    axes.set_ylabel(f"loss (nats per {options.token})")
    axes.set_title(f"{options.title}, commit {commit}", fontsize=9)
    axes.grid(alpha=0.3)
    axes.legend(frameon=False)
    figure.tight_layout()
    figure.savefig(options.out, metadata={"Date": None})


if __name__ == "__main__":
    main()
