"""For a machine that has vLLM: an exported model served by it writes what Transformers writes.

    python tests/portable/vllm_there.py OUT

OUT is what `versatileffn export` wrote. Greedy tokens of both are compared, in float32, without
compiled graphs. Whatever it prints is of that machine: no row of docs/tools.md comes from here.
"""

import sys
from typing import Any

import torch
from transformers import AutoModelForCausalLM

PROMPTS = [[1, 5, 9, 2], [7, 3, 3, 8, 4, 6]]
TOKENS = 16


def written(out: str) -> list[list[int]]:
    """By Transformers, one prompt after the other."""
    model: Any = AutoModelForCausalLM.from_pretrained(
        out, trust_remote_code=True, dtype=torch.float32
    )
    asked = {"max_new_tokens": TOKENS, "do_sample": False}
    return [model.generate(torch.tensor([ids]), **asked)[0, len(ids) :].tolist() for ids in PROMPTS]


def served(out: str) -> list[list[int]]:
    """By vLLM's Transformers backend, together."""
    from vllm import LLM, SamplingParams

    engine = LLM(
        out, model_impl="transformers", trust_remote_code=True, dtype="float32",
        enforce_eager=True, skip_tokenizer_init=True,
    )  # fmt: skip
    sampling = SamplingParams(temperature=0, max_tokens=TOKENS, detokenize=False)
    answers = engine.generate([{"prompt_token_ids": ids} for ids in PROMPTS], sampling)
    return [list(answer.outputs[0].token_ids) for answer in answers]


if __name__ == "__main__":
    ours, theirs = written(sys.argv[1]), served(sys.argv[1])
    print("works: the same tokens" if ours == theirs else f"differs: {ours}, vLLM {theirs}")
    sys.exit(ours != theirs)
