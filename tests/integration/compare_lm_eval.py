#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Compares //launch:evaluate with lm-evaluation-harness, item by item.

Runs the harness (PyPI: lm-eval, accelerate, torch, transformers) with its own task
definitions on local files, on a folder that //launch:export wrote, and compares
with the lines that //launch:evaluate --predictions wrote for the same
checkpoint, files and limit: the texts that are scored, log-likelihoods,
predictions and accuracies. Needs no network. docs/evaluation.md has the
commands and the result.

  compare_lm_eval.py --model=HF_FOLDER --data=FOLDER --predictions=items.jsonl \\
      --results=results.json --limit=300 [--tasks=piqa,sciq]
"""

import argparse
import glob
import json
import lzma
import os
import sys
import tempfile

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("HF_DATASETS_OFFLINE", "1")

import lm_eval
from lm_eval.models.huggingface import HFLM
from lm_eval.tasks import TaskManager

TASKS_FOLDER = os.path.join(os.path.dirname(lm_eval.__file__), "tasks")

# The harness's definition, the split it evaluates, and our file.
DEFINITIONS = {
    "arc_easy": ("arc/arc_easy.yaml", "test", "arc_easy_test"),
    "arc_challenge": ("arc/arc_challenge.yaml", "test", "arc_challenge_test"),
    "hellaswag": ("hellaswag/hellaswag.yaml", "validation", "hellaswag_val"),
    "piqa": ("piqa/piqa.yaml", "validation", "piqa_validation"),
    "sciq": ("sciq/sciq.yaml", "test", "sciq_validation"),
    "winogrande": (
        "winogrande/default.yaml", "validation", "winogrande_xl_validation"),
    "social_iqa": ("siqa/siqa.yaml", "validation", "social_iqa_validation"),
    "race": ("race/race.yaml", "test", "race_high_test"),
}


def read_rows(folder, stem, limit):
    path = glob.glob(os.path.join(folder, stem + ".jsonl*"))[0]
    opener = lzma.open if path.endswith(".xz") else open
    with opener(path, "rt", encoding="utf-8") as lines:
        rows = [json.loads(line) for line, _ in zip(lines, range(limit))]
    return rows


def in_data_set_form(task, row):
    """The row as the Hugging Face data set has it, where ours is shorter."""
    if task.startswith("arc_") and "gold" in row:
        labels = [chr(ord("A") + i) for i in range(len(row["choices"]))]
        row = dict(row)
        row["choices"] = {"text": row["choices"], "label": labels}
        row["answerKey"] = labels[row.pop("gold")]
    return row


def write_task(task, folder, limit, out):
    """A task of the harness that reads a local file; returns its name."""
    definition, split, stem = DEFINITIONS[task]
    rows = [in_data_set_form(task, row)
            for row in read_rows(folder, stem, limit)]
    data = os.path.join(out, task + ".json")
    with open(data, "w", encoding="utf-8") as file:
        for row in rows:
            file.write(json.dumps(row) + "\n")
    lines = [
        "include: " + os.path.join(TASKS_FOLDER, definition),
        "task: local_" + task,
        "tag: []",
        "dataset_path: json",
        "dataset_name: null",
        "dataset_kwargs: {data_files: {%s: %s}}" % (split, json.dumps(data)),
    ]
    for other in ("training", "validation", "test"):
        lines.append("%s_split: %s" %
                     (other, split if other == split else "null"))
    if task == "hellaswag" and "query" in rows[0]:
        # The file holds the sentences after the harness's own clean-up.
        lines += ["process_docs: null", "doc_to_target: gold"]
    with open(os.path.join(out, task + ".yaml"), "w") as file:
        file.write("\n".join(lines) + "\n")
    return "local_" + task


def run_harness(arguments, tasks):
    model = HFLM(
        pretrained=arguments.model, trust_remote_code=True, dtype="float32",
        device="cpu", batch_size=arguments.batch_size)
    with tempfile.TemporaryDirectory() as out:
        names = [write_task(task, arguments.data, arguments.limit, out)
                 for task in tasks]
        return lm_eval.simple_evaluate(
            model=model, tasks=names, log_samples=True, num_fewshot=0,
            task_manager=TaskManager(include_path=out, include_defaults=False))


def first_largest(values):
    return max(range(len(values)), key=lambda i: values[i])


def compare_task(task, theirs, ours, results, accuracy):
    samples = sorted(theirs, key=lambda sample: sample["doc_id"])
    assert len(samples) == len(ours), (task, len(samples), len(ours))
    texts = predictions = ties = 0
    largest = 0.0
    for sample, item in zip(samples, ours):
        arguments = [list(a) for a in sample["arguments"]]
        if arguments != [list(pair) for pair in
                         zip(item["contexts"], item["continuations"])]:
            texts += 1
            print("%s item %d: other text: %r, ours %r" %
                  (task, item["index"], arguments, item))
        scores = [answer[0][0] for answer in sample["resps"]]
        for a, b in zip(scores, item["log_likelihoods"]):
            largest = max(largest, abs(a - b) / max(1.0, abs(a)))
        if len(set(scores)) < len(scores):
            ties += 1
        pairs = [(first_largest(scores), item["prediction"])]
        if "acc_norm" in sample:
            lengths = [len(c) - 1 for c in item["continuations"]]
            by_length = [s / n for s, n in zip(scores, lengths)]
            pairs.append((first_largest(by_length), item["prediction_norm"]))
            assert sample["acc_norm"] == float(
                pairs[1][0] == item["gold"]), (task, item["index"])
        if any(a != b for a, b in pairs):
            predictions += 1
            print("%s item %d: prediction %s, scores %s, ours %s" %
                  (task, item["index"], pairs, scores,
                   item["log_likelihoods"]))
    same = True
    for metric in ("acc", "acc_norm"):
        key = metric + ",none"
        if key not in accuracy:
            continue
        for mine, name in ((metric, key), (metric + "_stderr",
                                           metric + "_stderr,none")):
            if abs(accuracy[name] - results[mine]) > 1e-12:
                same = False
                print("%s %s: %r, ours %r" %
                      (task, mine, accuracy[name], results[mine]))
    print("%-14s %5d items, %d other texts, %d other predictions, %d with "
          "equal scores, largest relative difference of a log-likelihood "
          "%.1e, acc %.4f%s %s" %
          (task, len(samples), texts, predictions, ties, largest,
           accuracy["acc,none"],
           ", acc_norm %.4f" % accuracy["acc_norm,none"]
           if "acc_norm,none" in accuracy else "",
           "the same" if same else "DIFFERENT"))
    return texts == 0 and predictions == 0 and same


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", required=True)
    parser.add_argument("--data", required=True)
    parser.add_argument("--predictions", required=True)
    parser.add_argument("--results", required=True)
    parser.add_argument("--limit", type=int, default=300)
    parser.add_argument("--batch_size", type=int, default=8)
    parser.add_argument("--tasks", default="")
    arguments = parser.parse_args()
    with open(arguments.predictions, encoding="utf-8") as lines:
        ours = [json.loads(line) for line in lines]
    with open(arguments.results, encoding="utf-8") as file:
        results = json.load(file)["results"]
    tasks = [task for task in (arguments.tasks.split(",") if arguments.tasks
                               else results)]
    harness = run_harness(arguments, tasks)
    good = True
    for task in tasks:
        name = "local_" + task
        good &= compare_task(
            task, harness["samples"][name],
            [item for item in ours if item["task"] == task], results[task],
            harness["results"][name])
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
