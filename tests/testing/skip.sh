#!/bin/bash
# SPDX-License-Identifier: Apache-2.0
#
# For tests that are scripts; to be sourced.

# skip REASON: ends the test as skipped. Bazel calls a script that exits 0
# passed; .ci/count_cases.py reads the XML, which Bazel leaves as it finds it.
skip() {
  echo "SKIPPED: $1"
  if [[ -n ${XML_OUTPUT_FILE:-} ]]; then
    local name=${TEST_TARGET:-${0##*/}}
    cat >"$XML_OUTPUT_FILE" <<END
<?xml version="1.0" encoding="UTF-8"?>
<testsuites>
  <testsuite name="$name" tests="1" failures="0" errors="0" skipped="1">
    <testcase name="$name" status="run"><skipped message="$1"/></testcase>
  </testsuite>
</testsuites>
END
  fi
  exit 0
}
