#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Counts the test cases of one `bazel test`.

  count_cases.py EVENTS.json STAGE FAILURES

EVENTS.json is what --build_event_json_file wrote: it names the XML file of each
test of that run, cached ones too, and the targets that could not be built.
Prints a line for every target and reason why cases were skipped, then a line
for every failed case with its reason, and appends these to the file FAILURES.
The last line is "PASSED FAILED SKIPPED".
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
    try:
        root = ElementTree.parse(path).getroot()
    except (OSError, ElementTree.ParseError) as error:
        yield "", "failed", "its XML file cannot be read: %s" % error
        return
    for case in root.iter("testcase"):
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


def count(xml_files, not_built):
    """Returns (counts, lines of failures, {(label, reason): skipped cases})."""
    counts = {"passed": 0, "failed": len(not_built), "skipped": 0}
    failures = ["NOT BUILT %s" % label for label in sorted(not_built)]
    skips = {}
    for (label, _, _), uri in sorted(xml_files.items()):
        cases = ([("", "failed", "it left no XML file")]
                 if uri is None else list(cases_of(uri)))
        if not cases:
            cases = [("", "failed", "it ran no test case")]
        for name, outcome, why in cases:
            counts[outcome] += 1
            if outcome == "failed":
                failures.append("FAILED %s %s: %s" % (label, name, why))
            elif outcome == "skipped":
                skips[label, why] = skips.get((label, why), 0) + 1
    return counts, failures, skips


def main():
    events, stage, failures_path = sys.argv[1:]
    counts, failures, skips = count(*read_events(events))
    for (label, why), cases in skips.items():
        print("%s: SKIPPED %d of %s: %s" % (stage, cases, label, why))
    with open(failures_path, "a", encoding="utf-8") as file:
        for failure in failures:
            print("%s: %s" % (stage, failure))
            print("%s: %s" % (stage, failure), file=file)
    print(counts["passed"], counts["failed"], counts["skipped"])


if __name__ == "__main__":
    main()
