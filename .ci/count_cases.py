#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Counts the test cases of one `bazel test`.

  count_cases.py EVENTS.json STAGE

EVENTS.json is what --build_event_json_file wrote: it names the XML file of each
test of that run, cached ones too, and the targets that could not be built.
Prints one line for every failed and every skipped case with its reason; the
last line is "PASSED FAILED SKIPPED".
"""

import json
import sys
import urllib.parse
import xml.etree.ElementTree as ElementTree


def read_events(path):
    """Returns ({(label, run, shard): path of the XML}, labels not built)."""
    xml_files = {}
    not_built = set()
    with open(path, encoding="utf-8") as lines:
        for line in lines:
            event = json.loads(line)
            identity = event["id"].get("testResult")
            if identity is not None and "testResult" in event:
                outputs = event["testResult"].get("testActionOutput", [])
                found = [o["uri"] for o in outputs if o["name"] == "test.xml"]
                key = (identity["label"], identity["run"], identity["shard"])
                xml_files[key] = found[0] if found else None
            completed = event["id"].get("targetCompleted")
            if completed is not None and not event.get("completed", {}).get(
                    "success", False):
                not_built.add(completed["label"])
    # A test that ran and failed is a target that completed.
    return xml_files, not_built - {label for label, _, _ in xml_files}


def reason(element):
    text = element.get("message") or element.text or ""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    # GoogleTest begins with FILE:LINE.
    return " ".join(lines[1:] if len(lines) > 1 else lines)[:300]


def cases_of(uri):
    """Yields (name, "passed", "failed" or "skipped", reason)."""
    path = urllib.parse.unquote(urllib.parse.urlparse(uri).path)
    for case in ElementTree.parse(path).getroot().iter("testcase"):
        name = "%s.%s" % (case.get("classname", ""), case.get("name", ""))
        bad = case.find("failure")
        if bad is None:
            bad = case.find("error")
        skip = case.find("skipped")
        if bad is not None:
            yield name, "failed", reason(bad)
        elif skip is not None:
            yield name, "skipped", reason(skip)
        elif case.get("status") != "notrun":  # DISABLED_, or filtered out
            yield name, "passed", ""


def main():
    events, stage = sys.argv[1:]
    xml_files, not_built = read_events(events)
    counts = {"passed": 0, "failed": 0, "skipped": 0}
    for label in sorted(not_built):
        counts["failed"] += 1
        print("%s: NOT BUILT %s" % (stage, label))
    for (label, _, _), uri in sorted(xml_files.items()):
        cases = ([("", "failed", "it left no XML file")]
                 if uri is None else list(cases_of(uri)))
        if not cases:
            cases = [("", "failed", "it ran no test case")]
        for name, outcome, why in cases:
            counts[outcome] += 1
            if outcome != "passed":
                print("%s: %s %s %s: %s" %
                      (stage, outcome.upper(), label, name, why))
    print(counts["passed"], counts["failed"], counts["skipped"])


if __name__ == "__main__":
    main()
