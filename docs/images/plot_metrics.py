#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Draws loss curves of runs: plot_metrics.py OUT.svg LABEL=RUN_FOLDER ...

Thin lines are the training loss, dots the validation loss, both in nats per
token, read from metrics.jsonl. Needs matplotlib (Debian: python3-matplotlib).
"""

import json
import subprocess
import sys

import matplotlib

matplotlib.use("svg")
from matplotlib import pyplot as plt  # noqa: E402


def read_losses(folder, kind):
    with open(folder + "/metrics.jsonl", encoding="utf-8") as lines:
        rows = [json.loads(line) for line in lines]
    rows = [row for row in rows if row["kind"] == kind]
    return [row["step"] for row in rows], [row["loss"] for row in rows]


def main():
    if len(sys.argv) < 3:
        sys.exit(__doc__)
    matplotlib.rcParams["svg.hashsalt"] = "cubit"
    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"],
                            capture_output=True, text=True,
                            check=True).stdout.strip()
    figure, axes = plt.subplots(figsize=(7, 3.6))
    for index, argument in enumerate(sys.argv[2:]):
        label, folder = argument.split("=", 1)
        color = f"C{index}"
        axes.plot(*read_losses(folder, "train"), color=color, alpha=0.35,
                  linewidth=0.8)
        axes.plot(*read_losses(folder, "validation"), "o-", color=color,
                  markersize=3, label=label)
    axes.set_xlabel("step")
    axes.set_ylabel("loss (nats per byte)")
    axes.set_title(f"preset tiny, default corpus, commit {commit}", fontsize=9)
    axes.grid(alpha=0.3)
    axes.legend(frameon=False)
    figure.tight_layout()
    figure.savefig(sys.argv[1], metadata={"Date": None})


if __name__ == "__main__":
    main()
