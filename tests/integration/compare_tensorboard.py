#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Compares what TensorBoard's own reader sees of a run's event files with the
run's metrics.jsonl. docs/watching.md tells how to run it.

  compare_tensorboard.py RUN...

One line a run; status 1 if a number is missing, extra or another.
"""

import json
import os
import struct
import sys

from tensorboard.backend.event_processing.event_accumulator import (
    EventAccumulator,
)


def as_float(value):
    return struct.unpack("f", struct.pack("f", value))[0]


def numbers(prefix, members):
    for name, value in members.items():
        if isinstance(value, list):
            value = dict(enumerate(value))
        if isinstance(value, dict):
            yield from numbers(f"{prefix}/{name}", value)
        elif not isinstance(value, (bool, str, type(None))) and name != "step":
            yield f"{prefix}/{name}", as_float(value)


def wanted(run):
    seen = {}
    with open(os.path.join(run, "metrics.jsonl"), encoding="utf-8") as lines:
        for line in lines:
            record = json.loads(line)
            prefix = record.get("event", record["kind"])
            for tag, value in numbers(prefix, record):
                seen.setdefault(tag, []).append((record["step"], value))
    return seen


def found(run):
    reader = EventAccumulator(
        os.path.join(run, "tensorboard"), size_guidance={"scalars": 0}
    )
    reader.Reload()
    return {
        tag: [(event.step, event.value) for event in reader.Scalars(tag)]
        for tag in reader.Tags()["scalars"]
    }


def compare(run):
    ours, theirs = wanted(run), found(run)
    bad = [tag for tag in {*ours, *theirs} if ours.get(tag) != theirs.get(tag)]
    count = sum(len(values) for values in theirs.values())
    print(
        f"{'FAIL' if bad else 'pass'}  {run}: {len(theirs)} tags, {count}"
        f" numbers{'; differ: ' + ', '.join(sorted(bad)) if bad else ''}"
    )
    return not bad


if __name__ == "__main__":
    if len(sys.argv) < 2:
        sys.exit(__doc__)
    results = [compare(run) for run in sys.argv[1:]]
    sys.exit(0 if all(results) else 1)
