#!/bin/bash
# SPDX-License-Identifier: Apache-2.0
#
# Packs the training program, unpacks it elsewhere, and uses it there without
# anything of Bazel's. Arguments: the packing script and the programs.
set -euo pipefail

script=$1
shift
archive=$TEST_TMPDIR/cubit.tar.gz
"$script" "$@" --out="$archive"

away=$TEST_TMPDIR/elsewhere/with\ space
mkdir -p "$away"
tar --extract --file "$archive" --directory "$away"
cd "$away"

run() { env -i PATH=/usr/bin:/bin HOME="$TEST_TMPDIR" "$@"; }

fail() {
  echo "FAIL: $*"
  exit 1
}

run ldd cubit/bin/train_cpu >libraries
! grep "not found" libraries || fail "libraries are missing"
for name in libabsl libprotobuf libopenblas libstdc++; do
  grep --quiet "$name.*cubit/bin/../lib/" libraries ||
    fail "$name is not taken from the bundle"
  ! grep --quiet "$name.* => /usr" libraries ||
    fail "a $name is taken from the machine"
done

run cubit/bin/train --help >said
grep --quiet -- "--output_dir" said || fail "--help"
run cubit/bin/train --list_presets >said
grep --quiet cubit_125m said || fail "--list_presets"

mkdir texts
for document in 1 2 3 4 5 6 7 8; do
  for line in $(seq 60); do
    echo "the $line cats of $document sat on the mat and looked at the dog."
  done >"texts/$document.txt"
done
run cubit/bin/train --device=cpu --data=texts --output_dir=run --steps=2 \
  --set model.num_layers=1 --set model.hidden_size=32 --set model.num_heads=2 \
  --set model.seq_len=64 --set batch.global_batch_size=4 \
  --set batch.micro_batch_size=2 --set evaluation.max_batches=2 ||
  fail "a training of two steps"
grep --quiet '"kind":"train"' run/metrics.jsonl || fail "no metrics"
[[ -f run/checkpoints/latest ]] || fail "no checkpoint"

# Wrong requests change nothing.
! "$OLDPWD/$script" --out="$TEST_TMPDIR/none.tar.gz" 2>error ||
  fail "packed nothing"
grep --quiet "no program is given" error || fail "$(cat error)"
! "$OLDPWD/$script" "$OLDPWD/$1" 2>error || fail "packed to nowhere"
grep --quiet -- "--out is missing" error || fail "$(cat error)"
[[ ! -e $TEST_TMPDIR/none.tar.gz ]] || fail "an archive of nothing"
