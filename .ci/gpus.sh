#!/bin/bash
# SPDX-License-Identifier: Apache-2.0
#
# Sourced: spreads programs over the GPUs of a machine, or over those that
# CUDA_VISIBLE_DEVICES names.

if [[ -n ${CUDA_VISIBLE_DEVICES-} ]]; then
  gpus=${CUDA_VISIBLE_DEVICES//,/ }
else
  gpus=$(nvidia-smi --query-gpu=uuid --format=csv,noheader 2>/dev/null |
    paste --serial --delimiters=' ')
fi

# use_gpu NUMBER: what is started from here on sees one GPU, the NUMBERth (from
# 0), counted round and round. Nothing where no GPU is known.
use_gpu() {
  local all
  read -ra all <<<"$gpus"
  ((${#all[@]} == 0)) || export CUDA_VISIBLE_DEVICES=${all[$1 % ${#all[@]}]}
}
export gpus
export -f use_gpu
