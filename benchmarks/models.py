"""A whole language model: prefill, decode with the KV cache, and the training step."""

from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor

from benchmarks.distributions import loop_counts, prescribe
from benchmarks.setup import TOLERANCE, check_equal
from benchmarks.straightforward import run_straightforward
from versatileffn.analysis.executed import FlopCounter
from versatileffn.analysis.speed import measure, subject
from versatileffn.ffn.base_config import FFNConfig
from versatileffn.ffn.config import Dense, KLoop, MoE, Versatile
from versatileffn.ffn.plan import ReusePlan
from versatileffn.ffn.view import FFNView
from versatileffn.models.family import VersatileLlamaConfig, VersatileLlamaForCausalLM

BASELINES: dict[str, FFNConfig] = {
    "dense": Dense(),
    "2-loop": KLoop(2),
    "4-loop": KLoop(4),
    "moe": MoE(),
}
STEPS = 8
"""Tokens that decoding adds to each sequence."""


def build(
    kind: str, shape: dict[str, Any], loop_count: Tensor, dtype: torch.dtype
) -> VersatileLlamaForCausalLM:
    """A randomly initialized baseline, or a reuse model with one execution or `straightforward`."""
    torch.manual_seed(0)
    reuse = BASELINES.get(kind, Versatile()).to_dict()
    no_tokens = {"bos_token_id": None, "eos_token_id": None, "pad_token_id": 0}
    net = VersatileLlamaForCausalLM(VersatileLlamaConfig(**shape, **no_tokens, reuse=reuse))
    if kind in BASELINES:
        return net.to(dtype=dtype)
    if kind != "straightforward":
        net.set_execution(kind)
    for number, layer in enumerate(net.reuse_layers()):
        prescribe(layer.controller, loop_count, seed=number)
        if kind == "straightforward":
            layer.reuse = partial(_straightforward, layer)
    return net.to(dtype=dtype)


def _straightforward(layer: Any, hidden: Tensor, view: FFNView) -> tuple[Tensor, ReusePlan]:
    """In the place of `Reuse.reuse`."""
    plan = layer.controller(hidden)
    flat = hidden.reshape(-1, hidden.shape[-1])
    output = run_straightforward(flat, view, plan.flatten()).view_as(hidden)
    return output - hidden, plan


def model(
    budget: dict[str, Any],
    work: str,
    shape: dict[str, Any],
    sequences: int,
    length: int,
    shares: Sequence[float],
    dtype: str,
    executors: list[str],
) -> dict[str, Any]:
    """One kind of work, for every baseline and executor, beside the dense model.

    Args:
        work: `prefill`, `decode`, or `training`, see `versatileffn.analysis.speed`.
        sequences, length: B and T.
        dtype: of the weights, or of autocast when training.
    """
    stored = torch.float32 if work == "training" else getattr(torch, dtype)
    counts = loop_counts(shares, sequences * (1 if work == "decode" else length))
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(1, shape["vocab_size"], (sequences, length), generator=generator)
    run, results, flops = {}, {}, {}
    ours = ["straightforward", *executors]
    for kind in [*BASELINES, *ours]:
        net = build(kind, shape, counts, stored)
        run[kind] = subject(work, net, ids, STEPS, dtype == "bfloat16")
        with FlopCounter() as counter:
            first, *rest = run[kind]()
        flops[kind] = counter.total
        if kind in ours:  # all gradients as one vector
            results[kind] = [first, *([torch.cat([g.flatten() for g in rest])] if rest else [])]
    errors = check_equal(results, ours[0], TOLERANCE[dtype])
    del results, first, rest
    tokens = sequences * (STEPS if work == "decode" else length)
    timings = measure(run, **budget)
    seconds = timings.spreads()
    return {
        "mean_loops": counts.double().mean().item(),
        "errors": errors,
        "seconds": seconds,
        "tokens_per_second": {kind: tokens / seconds[kind]["median"] for kind in run},
        "flops_per_token": {kind: total / tokens for kind, total in flops.items()},
        "rate_per_flop": {
            kind: timings.ratio("dense", kind, flops["dense"] / flops[kind]) for kind in run
        },
    }
