#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Compares a checkpoint, as //tests/integration:dump_logits shows it, with its
export, as transformers computes it. docs/interchange.md tells how to run it.

  compare_transformers.py EXPORTED DUMP [EXPORTED DUMP]...

One line a pair; status 1 if logits differ by more than 1e-4 or a greedy
continuation by a token.
"""

import os
import sys
import tempfile

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ.setdefault("HF_MODULES_CACHE", tempfile.mkdtemp())

import torch  # noqa: E402
from safetensors.torch import load_file  # noqa: E402
from transformers import AutoModelForCausalLM, AutoTokenizer  # noqa: E402

TOLERANCE = 1e-4


def step_by_step(model, ids):
    cache, rows = None, []
    for i in range(ids.shape[1]):
        out = model(ids[:, i : i + 1], past_key_values=cache, use_cache=True)
        cache = out.past_key_values
        rows.append(out.logits[0, 0])
    return torch.stack(rows)


def greedy(model, ids, count, use_cache):
    out = model.generate(
        ids,
        attention_mask=torch.ones_like(ids),
        max_new_tokens=count,
        min_new_tokens=count,
        do_sample=False,
        use_cache=use_cache,
        eos_token_id=None,
    )
    return out[0, ids.shape[1] :]


@torch.no_grad()
def compare(exported, dump):
    ours = load_file(dump)
    ids = ours["ids"].long()[None]
    model = AutoModelForCausalLM.from_pretrained(
        exported, trust_remote_code=True, dtype=torch.float32
    ).eval()
    tokenizer = AutoTokenizer.from_pretrained(exported, trust_remote_code=True)
    text = tokenizer.decode(ids[0, 1:])
    same_ids = tokenizer(text)["input_ids"] == ids[0, 1:].tolist()
    vocab = ours["parallel"].shape[1]
    whole = model(ids).logits[0, :, :vocab]
    cached = step_by_step(model, ids)[:, :vocab]
    worst = max(
        (mine - theirs).abs().max().item()
        for mine in (ours["parallel"], ours["cached"])
        for theirs in (whole, cached)
    )
    count = len(ours["greedy"])
    texts = [
        ours["greedy"].long(),
        ours["greedy_cached"].long(),
        greedy(model, ids, count, False),
        greedy(model, ids, count, True),
    ]
    equal = all(torch.equal(texts[0], other) for other in texts[1:])
    passed = worst <= TOLERANCE and equal and same_ids
    print(
        f"{'pass' if passed else 'FAIL'}  {exported}: {ids.shape[1]} positions,"
        f" largest logit {ours['parallel'].abs().max().item():.2f}, largest"
        f" difference {worst:.2e}; {count} greedy tokens"
        f" {'equal' if equal else 'DIFFER'} four ways; ids of the text"
        f" {'equal' if same_ids else 'DIFFER'}",
        flush=True,
    )
    return passed


def main(arguments):
    if not arguments or len(arguments) % 2:
        sys.exit(__doc__)
    torch.set_num_threads(1)
    pairs = zip(arguments[::2], arguments[1::2])
    results = [compare(exported, dump) for exported, dump in pairs]
    sys.exit(0 if all(results) else 1)


if __name__ == "__main__":
    main(sys.argv[1:])
