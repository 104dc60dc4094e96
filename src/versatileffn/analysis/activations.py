"""Activation memory, measured: bytes that an FFN keeps for its backward pass, per token.

A real layer's FFN runs forward, and every tensor that autograd saves is seen through
`saved_tensors_hooks`. Storages count once however many views of them are saved, and whole, because
a saved view keeps all of its storage alive. Two numbers of tokens are run and their difference
taken, so that weights, and what autocast makes of them, drop out.
"""

from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import replace
from math import ceil, floor
from typing import Any

import torch
from torch import Tensor

from versatileffn.analysis.flops import ffn_of, with_zeros
from versatileffn.analysis.saved import saved_for_backward
from versatileffn.execution.select import Execution
from versatileffn.ffn.plan import ReusePlan, one_hot_loops, width_share
from versatileffn.models.family import is_reuse, reuse_config
from versatileffn.models.weights import skeleton

TOKENS = (2, 4)


def ffn_activation_bytes(
    config: Any,
    bf16: bool = False,
    mean_loops: float | None = None,
    execution: Execution = "auto",
) -> float:
    """Bytes per token that all FFNs of a model keep for the backward pass in training.

    Norm, controller and experts are part of it; attention isn't. The few numbers per token that a
    plan itself holds are not seen where an executor keeps the plan as a whole.

    Args:
        config: of a model of any family, dense or reused.
        bf16: under bfloat16 autocast, weights in float32.
        mean_loops: E[ℓ̂], on which packed training's memory depends, 1 to L: measured with all
            tokens at the whole numbers around it. None stands for L, the most.
        execution: what carries out a plan.

    Returns:
        Bytes per token. It doesn't depend on the weights, nor on how many tokens there are.
    """
    ffn = ffn_of(config)
    mean = ffn.loops if mean_loops is None else mean_loops
    below, above = floor(mean), ceil(mean)
    model: Any = skeleton(config if is_reuse(config) else reuse_config(config, ffn))
    model.set_execution(execution)
    layers = model.reuse_layers()
    total = 0.0
    for reuse, alike in Counter(layer.reuse_config for layer in layers).items():
        layer = with_zeros(next(x for x in layers if x.reuse_config == reuse)).train()
        with torch.random.fork_rng(devices=[]):
            measured = {n: _per_token(layer, config.hidden_size, n, bf16) for n in {below, above}}
        total += alike * (measured[below] + (mean - below) * (measured[above] - measured[below]))
    return total


def _per_token(layer: Any, d_model: int, loops: int, bf16: bool) -> float:
    """Bytes that one layer keeps for each token, all of which run `loops` loops."""

    def saved(tokens: int) -> float:
        hidden = torch.ones(1, tokens, d_model, requires_grad=True)
        return saved_bytes(lambda: run_ffn(layer, hidden, loops), layer.parameters(), bf16)

    few, many = map(saved, TOKENS)
    return (many - few) / (TOKENS[1] - TOKENS[0])


def run_ffn(layer: Any, hidden: Tensor, loops: int) -> Tensor:
    """A layer's update of hidden states whose tokens all take `loops` loops, where they may choose.

    Args:
        layer: a `Reuse` layer of a model.
        hidden: [..., D].
        loops: 1 … L.
    """
    view, plan = layer.ffn_view(), None
    if layer.controller is not None:
        plan = layer.decide(hidden, view)
        if plan.hard and plan.uniform is None and plan.max_loops > 1:
            plan = at(plan, loops)
    update: Tensor = layer.reuse(hidden, view, plan)[0]
    return update


def at(plan: ReusePlan, loops: int) -> ReusePlan:
    """The same plan with `loops` loops for every token; gradients reach all that decided."""
    count = torch.full_like(plan.loop_count, loops)
    one_hot = one_hot_loops(count, plan.max_loops).to(plan.loop_probs.dtype)
    probs = one_hot + (plan.loop_probs - plan.loop_probs.detach())
    lam = plan.lam if plan.fusion is None else width_share(plan.fusion, probs)
    return replace(plan, loop_count=count, loop_probs=probs, lam=lam)


def saved_bytes(run: Callable[[], Tensor], weights: Iterable[Tensor], bf16: bool = False) -> float:
    """Bytes that autograd keeps of a forward pass on the CPU, weights excepted.

    Args:
        run: the forward pass.
        weights: tensors that are there anyway.
        bf16: under bfloat16 autocast.
    """
    with torch.enable_grad(), torch.autocast("cpu", torch.bfloat16, enabled=bf16):
        return saved_for_backward(run, weights).bytes
