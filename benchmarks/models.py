"""A whole language model: prefill, decode with the KV cache, and the training step."""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor

from benchmarks.distributions import PrescribedController, loop_counts
from benchmarks.setup import LOOSE, check_equal
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
    kind: str, shape: dict[str, Any], loop_count: Tensor, dtype: torch.dtype, seed: int
) -> VersatileLlamaForCausalLM:
    """A randomly initialized model.

    Args:
        kind: a baseline, an execution of the reuse layer, or `straightforward`.
        shape: fields of `LlamaConfig`.
        loop_count: prescribed ℓ̂, see `PrescribedController`.
        seed: of the weights; the same for models that are compared.
    """
    torch.manual_seed(seed)
    reuse = BASELINES.get(kind, Versatile())
    config = VersatileLlamaConfig(
        **shape,
        reuse=reuse.to_dict(),
        tau=1.0,
        bos_token_id=None,
        eos_token_id=None,
        pad_token_id=0,
    )
    net = VersatileLlamaForCausalLM(config)
    if kind not in BASELINES and kind != "straightforward":
        net.set_execution(kind)
    for number, layer in enumerate(net.reuse_layers()):
        if kind not in BASELINES:
            layer.controller = PrescribedController(layer.controller, loop_count, seed + number)
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
    seed: int,
) -> dict[str, Any]:
    """One kind of work, for every baseline and executor, beside the dense model.

    Args:
        work: `prefill`, `decode`, or `training`, see `versatileffn.analysis.speed`.
        sequences, length: B and T.
        dtype: of the weights, or of autocast when training.
    """
    stored = torch.float32 if work == "training" else getattr(torch, dtype)
    counts = loop_counts(shares, sequences * (1 if work == "decode" else length), seed)
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(1, shape["vocab_size"], (sequences, length), generator=generator)
    run: dict[str, Callable[[], list[Tensor]]] = {}
    ours = ["straightforward", *executors]
    for kind in [*BASELINES, *ours]:
        net = build(kind, shape, counts, stored, seed)
        run[kind] = subject(work, net, ids, STEPS, dtype == "bfloat16")
    results = {kind: _as_vectors(run[kind]()) for kind in ours}
    errors = check_equal(results, ours[0], LOOSE[dtype])
    del results
    tokens, flops = sequences * (STEPS if work == "decode" else length), {}
    for kind, step in run.items():
        with FlopCounter() as counter:
            step()
        flops[kind] = counter.total
    timings = measure(run, **budget)
    seconds = timings.spreads()
    return {
        "mean_loops": counts.double().mean().item(),
        "errors": errors,
        "seconds": seconds,
        "ratios": timings.ratios((kind, "dense", 1.0) for kind in run),
        "tokens_per_second": {kind: tokens / seconds[kind]["median"] for kind in run},
        "flops_per_token": {kind: total / tokens for kind, total in flops.items()},
        "rate_per_flop": {
            kind: timings.ratio("dense", kind, flops["dense"] / flops[kind]) for kind in run
        },
    }


def _as_vectors(results: list[Tensor]) -> list[Tensor]:
    """The first result, and all others (gradients) as one vector."""
    first, *rest = results
    return [first, torch.cat([tensor.flatten() for tensor in rest])] if rest else [first]
