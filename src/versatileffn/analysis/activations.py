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
from typing import Any, NamedTuple

import torch
from torch import Tensor

from versatileffn.analysis.flops import ffn_of, with_zeros
from versatileffn.execution.select import Execution
from versatileffn.ffn.plan import ReusePlan, width_share
from versatileffn.ffn.plan_fields import one_hot_loops
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
        with torch.enable_grad(), torch.autocast("cpu", torch.bfloat16, enabled=bf16):
            kept = saved_for_backward(lambda: run_ffn(layer, hidden, loops), layer.parameters())
        return kept.bytes

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


class Saved(NamedTuple):
    """What autograd keeps.

    Args:
        values: floating-point numbers.
        bytes: of everything, indices included.
    """

    values: float
    bytes: float


def saved_for_backward(run: Callable[[], object], weights: Iterable[Tensor]) -> Saved:
    """Measure what a forward pass saves, custom autograd functions included.

    Args:
        run: the forward pass; what it returns is kept alive while counting.
        weights: tensors that are there anyway and don't count.

    Returns:
        Sums over distinct storages: a saved view keeps its whole storage.
    """
    known = {weight.untyped_storage().data_ptr() for weight in weights}
    kept: dict[int, Tensor] = {}  # the tensors stay referenced, so that no address is used again

    def pack(tensor: Tensor) -> Tensor:
        address = tensor.untyped_storage().data_ptr()
        if address not in known:
            kept.setdefault(address, tensor)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        result = run()
    values = sum(
        tensor.untyped_storage().nbytes() // tensor.element_size()
        for tensor in kept.values()
        if tensor.is_floating_point()
    )
    size = sum(tensor.untyped_storage().nbytes() for tensor in kept.values())
    del result
    return Saved(values, size)
