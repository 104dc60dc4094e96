"""The exact gradient of a hard plan for L forward and ℓ̂ backward FFN applications a token.

With straight-through one-hot p no gradient flows through loops after ℓ̂; they matter only through
the scalars ⟨G, U_ℓ⟩ in the gradient of p, G being that of the update. So every loop runs forward,
but only a token's first ℓ̂ are differentiated; where p has no gradient, only they run. With
v = W_outᵀ G, the gradients of gates, gains and λ are dot products of v with activations that are
there anyway. Tokens are ordered by loop count, so those still running are a prefix.

Two memory modes. `run_recomputed` saves states alone, H₀ and U₁ … U_{L−1}, L·D values a token, and
its backward pass projects once more; `run_packed_training` also saves what W_proj gave in a token's
ℓ̂ loops, 2·F·ℓ̂ values, and a_L where ℓ̂ < L, F values. An FFN that doesn't merge takes
`run_stepwise_training`, which saves states (`stepwise.py`).

The gradient is written by hand, so it can't be differentiated again: whoever tries is told.

Legend: M tokens, D d_model, F d_hidden, L max_loops, N num_experts; H_ℓ = H₀ + r·U_ℓ.
"""

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from itertools import accumulate, chain, pairwise
from typing import Any, NoReturn

import torch
from torch import Tensor

from versatileffn.errors import ConfigError
from versatileffn.execution.gradients import Gradients, Saved, Wanted
from versatileffn.execution.layer import ReadLayer
from versatileffn.execution.norms import autocast_as
from versatileffn.execution.order import count_active, longest_first
from versatileffn.execution.packed import PackedForward, check_hard
from versatileffn.execution.packed_backward import PackedBackward
from versatileffn.execution.stepwise import SteppedLayer, StepwiseBackward, StepwiseForward
from versatileffn.ffn.token_weights import TokenWeights
from versatileffn.ffn.view import FFNView

BY_TOKEN = ("loop_count", "probs_ML", "kept_M1", "shared_M1", "routed_M1", "gates_MN", "gains_L")
"""The tensors of `TokenWeights`; all but the first have gradients."""


def run_packed_training(hidden_MD: Tensor, view: FFNView, weights: TokenWeights) -> Tensor:
    """Carry out a hard plan, differentiably, doing only the work that the gradient needs.

    Source: Algorithm 1 with one-hot p; docs/algebra.md for the gradient.

    Args:
        hidden_MD: H, hidden states after attention, [M, D].
        view: an FFN that merges and for which `why_called` has no reason.
        weights: of the same M tokens.

    Returns:
        (Y − H)/r, [M, D]. Its gradient in p is right up to a constant for each token, which no
        parametrization with Σ p = 1 can see.

    Raises:
        PlanError: the plan is soft.
    """
    return _apply(ReadLayer.of(view, hidden_MD), hidden_MD, weights, "activations")


def run_recomputed(hidden_MD: Tensor, view: FFNView, weights: TokenWeights) -> Tensor:
    """`run_packed_training` in the mode that saves states only."""
    return _apply(ReadLayer.of(view, hidden_MD), hidden_MD, weights, "states")


def run_stepwise_training(hidden_MD: Tensor, view: FFNView, weights: TokenWeights) -> Tensor:
    """`run_recomputed` for an FFN that doesn't merge, by autograd within each loop."""
    return _apply(SteppedLayer.of(view, hidden_MD), hidden_MD, weights, "states")


def _apply(
    layer: ReadLayer | SteppedLayer, hidden_MD: Tensor, weights: TokenWeights, keep: str
) -> Tensor:
    check_hard(weights)
    by_token = [getattr(weights, name) for name in BY_TOKEN]
    output_MD: Tensor = _PackedTraining.apply(
        layer, weights, keep, hidden_MD, *by_token, *layer.tensors
    )
    return output_MD


class _PackedTraining(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        layer: ReadLayer | SteppedLayer,
        weights: TokenWeights,
        keep: str,
        hidden_MD: Tensor,
        *tensors: Tensor | None,
    ) -> Tensor:
        # of H, then of `BY_TOKEN`, then of the layer
        needs = ctx.needs_input_grad[3:]
        ctx.wanted = Wanted(needs[2], needs[3], needs[1 + len(BY_TOKEN) :])
        output_MD, run = run_forward(layer, weights, hidden_MD, keep, ctx.wanted.probs)
        # What is saved is held by autograd alone, which frees it, moves it and guards it.
        nothing = hidden_MD.new_empty(0)
        ctx.layer = layer.with_tensors([nothing] * len(layer.tensors))
        ctx.weights = replace(weights, **dict.fromkeys(BY_TOKEN))  # type: ignore[arg-type]
        parts = (tensors[: len(BY_TOKEN)], layer.tensors, run.totals, run.projected)
        ctx.sizes = [len(part) for part in parts]
        ctx.save_for_backward(hidden_MD, *chain.from_iterable(parts))
        return output_MD

    @staticmethod
    def backward(ctx: Any, d_output_MD: Tensor) -> tuple[Tensor | None, ...]:
        gradients = partial(_PackedTraining.gradients, ctx)
        return (None, None, None, *_Once.apply(gradients, d_output_MD, *ctx.saved_tensors))

    @staticmethod
    def gradients(ctx: Any, d_output_MD: Tensor, *saved: Tensor) -> tuple[Tensor | None, ...]:
        hidden_MD, *rest = saved
        by_token, tensors, totals, projected = _split(rest, ctx.sizes)
        weights = replace(ctx.weights, **dict(zip(BY_TOKEN, by_token, strict=True)))
        grads = run_backward(
            ctx.layer.with_tensors(tensors), weights, Saved(hidden_MD, totals, projected),
            d_output_MD, ctx.wanted,
        )  # fmt: skip
        hidden, *others = grads.in_order()
        return (hidden, None, *others)  # None for the loop counts


class _Once(torch.autograd.Function):
    """Stands in the graph between all that a gradient depends on and the gradient.

    `once_differentiable` would not do: it notices only the gradient that comes in, so a second
    derivative of a sum would silently lack every term of this layer.
    """

    @staticmethod
    def forward(
        ctx: Any, gradients: Callable[..., tuple[Tensor | None, ...]], *inputs: Tensor
    ) -> Any:
        return gradients(*inputs)

    @staticmethod
    def backward(ctx: Any, *_: Tensor | None) -> Any:
        refuse_second_derivative()


def refuse_second_derivative() -> NoReturn:
    """Say what to use instead.

    Raises:
        ConfigError: always.
    """
    raise ConfigError(
        "packed training has no second derivatives (Hessian products, gradient penalties): use "
        "model.set_execution('masked') or layer.execution = 'masked', which has them"
    )


def run_forward(
    layer: ReadLayer | SteppedLayer,
    weights: TokenWeights,
    hidden_MD: Tensor,
    keep: str,
    all_loops: bool,
) -> tuple[Tensor, PackedForward | StepwiseForward]:
    """Order the tokens, run forward, and put the updates, [M, D], back into place.

    Args:
        layer, weights, keep, all_loops: see `PackedForward`.
        hidden_MD: H₀.

    Returns:
        (Y − H₀)/r, and the pass with what it kept, in order.
    """
    order_M = longest_first(weights.loop_count)
    count, weights = count_active(weights.loop_count, weights.max_loops), weights.take(order_M)
    run: PackedForward | StepwiseForward
    if isinstance(layer, SteppedLayer):
        run = StepwiseForward(layer.view, weights, count, all_loops)
    else:
        run = PackedForward(layer, weights, count, keep, all_loops)
    with autocast_as(hidden_MD, layer.autocast if isinstance(layer, SteppedLayer) else None):
        sorted_MD = run(hidden_MD.index_select(0, order_M))
    return torch.empty_like(sorted_MD).index_copy_(0, order_M, sorted_MD), run


def run_backward(
    layer: ReadLayer | SteppedLayer,
    weights: TokenWeights,
    saved: Saved,
    d_output_MD: Tensor,
    wanted: Wanted,
) -> Gradients:
    """Order the tokens again, run backward, and put gradients back into place.

    Args:
        layer, weights: as the forward pass had them.
        saved: what it kept; its `start_MD` not yet in order.
        d_output_MD: the gradient of the updates.
        wanted: which gradients are asked for.
    """
    order_M = longest_first(weights.loop_count)
    active = count_active(weights.loop_count, weights.max_loops)()
    saved = replace(saved, start_MD=saved.start_MD.index_select(0, order_M))
    weights, d_output_MD = weights.take(order_M), d_output_MD.index_select(0, order_M)
    with autocast_as(d_output_MD, None):
        if isinstance(layer, SteppedLayer):
            grads = StepwiseBackward(layer, weights, active, saved, d_output_MD)(wanted)
        else:
            grads = PackedBackward(layer, weights, active, saved, d_output_MD)(wanted)
    return grads.back_in_place(order_M)


def _split(values: Sequence[Tensor], sizes: list[int]) -> list[list[Tensor]]:
    """Cut a list into consecutive parts."""
    ends = [0, *accumulate(sizes)]
    return [list(values[start:stop]) for start, stop in pairwise(ends)]
