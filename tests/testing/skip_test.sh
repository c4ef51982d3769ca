#!/bin/bash
# SPDX-License-Identifier: Apache-2.0
#
# A script that skips is counted as skipped by CI, with its reason. Argument:
# .ci/count_cases.py.
set -euo pipefail

xml=$TEST_TMPDIR/test.xml
XML_OUTPUT_FILE=$xml TEST_TARGET=//tests:some_test bash -euo pipefail -c \
  'source tests/testing/skip.sh; skip "it needs root"; exit 1' >"$TEST_TMPDIR/said"
grep --quiet "^SKIPPED: it needs root$" "$TEST_TMPDIR/said"

cat >"$TEST_TMPDIR/events.json" <<END
{"id":{"testResult":{"label":"//tests:some_test","run":1,"shard":1}},"testResult":{"testActionOutput":[{"name":"test.xml","uri":"file://$xml"}]}}
END
python3 "$1" "$TEST_TMPDIR/events.json" tests "$TEST_TMPDIR/failures" \
  >"$TEST_TMPDIR/counts"
diff "$TEST_TMPDIR/counts" - <<END
tests: SKIPPED 1 of //tests:some_test: it needs root
0 0 1
END
[[ ! -s $TEST_TMPDIR/failures ]]
