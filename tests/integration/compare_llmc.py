#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Compares a checkpoint, as //tests/integration:dump_logits shows it, with its
llm.c file, as transformers' GPT-2 computes it. docs/interchange.md tells how to
run it.

  compare_llmc.py FILE.bin DUMP

Status 1 if logits differ by more than 1e-4.
"""

import sys

import numpy
import torch
from safetensors.torch import load_file
from transformers import GPT2Config, GPT2LMHeadModel

# The order of llm.c's train_gpt2.c: all layers of a kind together. Its matrices
# are [out, in], those of transformers' GPT-2 the other way round.
LAYER_PARTS = [
    ("ln_1.weight", lambda d: (d,)),
    ("ln_1.bias", lambda d: (d,)),
    ("attn.c_attn.weight", lambda d: (3 * d, d)),
    ("attn.c_attn.bias", lambda d: (3 * d,)),
    ("attn.c_proj.weight", lambda d: (d, d)),
    ("attn.c_proj.bias", lambda d: (d,)),
    ("ln_2.weight", lambda d: (d,)),
    ("ln_2.bias", lambda d: (d,)),
    ("mlp.c_fc.weight", lambda d: (4 * d, d)),
    ("mlp.c_fc.bias", lambda d: (4 * d,)),
    ("mlp.c_proj.weight", lambda d: (d, 4 * d)),
    ("mlp.c_proj.bias", lambda d: (d,)),
]


def read_model(path):
    header = numpy.fromfile(path, dtype=numpy.int32, count=256)
    assert header[0] == 20240326 and header[1] == 3, header[:2]
    positions, _, layers, heads, width, padded = map(int, header[2:8])
    values = torch.from_numpy(
        numpy.fromfile(path, dtype=numpy.float32, offset=1024)
    )
    model = GPT2LMHeadModel(
        GPT2Config(
            vocab_size=padded, n_positions=positions, n_embd=width,
            n_layer=layers, n_head=heads, attn_implementation="eager",
        )
    ).eval()
    state, at = {}, 0

    def take(*shape):
        nonlocal at
        count = int(numpy.prod(shape))
        at += count
        return values[at - count : at].reshape(shape)

    state["transformer.wte.weight"] = take(padded, width)
    state["transformer.wpe.weight"] = take(positions, width)
    for name, shape in LAYER_PARTS:
        for layer in range(layers):
            part = take(*shape(width))
            turned = part.T if part.dim() == 2 else part
            state[f"transformer.h.{layer}.{name}"] = turned
    state["transformer.ln_f.weight"] = take(width)
    state["transformer.ln_f.bias"] = take(width)
    assert at == len(values), (at, len(values))
    state["lm_head.weight"] = state["transformer.wte.weight"]
    model.load_state_dict(state)
    return model


@torch.no_grad()
def main(path, dump):
    ours = load_file(dump)
    vocab = ours["parallel"].shape[1]
    theirs = read_model(path)(ours["ids"].long()[None]).logits[0, :, :vocab]
    worst = (ours["parallel"] - theirs).abs().max().item()
    print(f"{'pass' if worst <= 1e-4 else 'FAIL'}  {path}: {len(theirs)}"
          f" positions, largest difference {worst:.2e}")
    sys.exit(0 if worst <= 1e-4 else 1)


if __name__ == "__main__":
    if len(sys.argv) != 3:
        sys.exit(__doc__)
    main(*sys.argv[1:])
