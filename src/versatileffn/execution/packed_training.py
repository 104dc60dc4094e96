"""The exact gradient of a hard plan for L forward and ℓ̂ backward FFN applications a token.

With straight-through one-hot p no gradient flows through loops after ℓ̂; they matter only through
the scalars ⟨∂Y, H_ℓ⟩ in the gradient of p. So every loop runs forward, but only a token's first ℓ̂
are differentiated. With v = W_outᵀ ∂Y, the gradients of gates, gains and λ are dot products of v
with activations that are there anyway. Tokens are ordered by loop count, so those still running
are a prefix.

Two memory modes. `run_recomputed` saves states alone, H₀ and U₁ … U_{L−1}, L·D values a token, and
its backward pass projects once more; `run_packed_training` also saves what W_proj gave in a token's
ℓ̂ loops, 2·F·ℓ̂ values, and a_L where ℓ̂ < L, F values.

The gradient is written by hand, so it can't be differentiated again: whoever tries is told.

Legend: M tokens, D d_model, F d_hidden, L max_loops, N num_experts; U_ℓ = H_ℓ − H₀.
"""

from collections.abc import Callable, Sequence
from functools import partial
from itertools import accumulate, chain, pairwise
from typing import Any, NoReturn

import torch
from torch import Tensor

from versatileffn.errors import ConfigError
from versatileffn.execution.blend import Blend
from versatileffn.execution.layer import Layer
from versatileffn.execution.order import count_active, longest_first
from versatileffn.execution.packed_backward import PackedBackward
from versatileffn.execution.packed_forward import PackedForward
from versatileffn.ffn.dense import FeedForward, Norm
from versatileffn.ffn.plan import ReusePlan


def run_packed_training(hidden_MD: Tensor, norm: Norm, mlp: FeedForward, plan: ReusePlan) -> Tensor:
    """Carry out a hard plan, differentiably, doing only the work that the gradient needs.

    Source: Algorithm 1 with one-hot p; docs/algebra.md for the gradient.

    Args:
        hidden_MD: H, hidden states after attention, [M, D].
        norm: the norm before the FFN, a module.
        mlp: an FFN for which `reads_plain_weights` holds.
        plan: a flat, hard plan for the same M tokens.

    Returns:
        Y, [M, D]. Its gradient in `loop_probs` is right up to a constant for each token, which
        no parametrization with Σ p = 1 can see.
    """
    return _apply(hidden_MD, norm, mlp, plan, keep_activations=True)


def run_recomputed(hidden_MD: Tensor, norm: Norm, mlp: FeedForward, plan: ReusePlan) -> Tensor:
    """`run_packed_training` in the mode that saves states only."""
    return _apply(hidden_MD, norm, mlp, plan, keep_activations=False)


def _apply(
    hidden_MD: Tensor, norm: Norm, mlp: FeedForward, plan: ReusePlan, keep_activations: bool
) -> Tensor:
    assert plan.hard
    layer, blend = Layer.of(norm, mlp, hidden_MD), Blend.of(plan)
    return _PackedTraining.apply(
        layer, blend, plan.loop_count, keep_activations,
        hidden_MD, plan.loop_probs, blend.kept_M1, blend.shared_M1, blend.routed_MN,
        plan.loop_gains, *layer.norm.weights, *layer.linears,
    )  # fmt: skip


class _PackedTraining(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        layer: Layer,
        blend: Blend,
        loop_count_M: Tensor,
        keep_activations: bool,
        hidden_MD: Tensor,
        loop_probs_ML: Tensor,
        kept_M1: Tensor,
        shared_M1: Tensor,
        routed_MN: Tensor | None,
        loop_gains_L: Tensor | None,
        *weights: Tensor,
    ) -> Tensor:
        all_loops = ctx.needs_input_grad[5] or ctx.needs_input_grad[6]
        output_MD, run = run_forward(
            layer, blend, loop_gains_L, loop_count_M, loop_probs_ML.shape[-1], hidden_MD,
            all_loops, keep_activations,
        )  # fmt: skip
        # What is saved is held by autograd alone, which frees it, moves it and guards it.
        ctx.layer, ctx.all_loops = layer.with_weights((), ()), all_loops
        ctx.blend, ctx.max_loops = (blend.shared, blend.slices), loop_probs_ML.shape[-1]
        parts = (layer.norm.weights, layer.linears, run.totals, run.saved)
        ctx.sizes = [len(part) for part in parts]
        ctx.save_for_backward(
            hidden_MD, loop_count_M, kept_M1, shared_M1, routed_MN, loop_gains_L,
            *chain.from_iterable(parts),
        )  # fmt: skip
        return output_MD

    @staticmethod
    def backward(ctx: Any, d_output_MD: Tensor) -> tuple[Tensor | None, ...]:
        gradients = partial(_PackedTraining.gradients, ctx)
        return (None, None, None, None, *_Once.apply(gradients, d_output_MD, *ctx.saved_tensors))

    @staticmethod
    def gradients(ctx: Any, d_output_MD: Tensor, *saved: Tensor) -> tuple[Tensor | None, ...]:
        hidden_MD, loop_count_M, kept_M1, shared_M1, routed_MN, gains_L, *rest = saved
        norm_weights, linears, totals, projected = _split(rest, ctx.sizes)
        shared, slices = ctx.blend
        grads = run_backward(
            ctx.layer.with_weights(norm_weights, linears),
            Blend(kept_M1, shared, shared_M1, routed_MN, slices),
            gains_L, loop_count_M, ctx.max_loops, hidden_MD, totals, projected, d_output_MD,
            ctx.all_loops, ctx.needs_input_grad[10:],
        )  # fmt: skip
        return tuple(grads)


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
        "execution='masked', which is differentiable as often as you like"
    )


def run_forward(
    layer: Layer,
    blend: Blend,
    gains_L: Tensor | None,
    loop_count_M: Tensor,
    max_loops: int,
    hidden_MD: Tensor,
    all_loops: bool,
    keep_activations: bool,
) -> tuple[Tensor, PackedForward]:
    """Order the tokens, run forward, and put Y, [M, D], back into place."""
    order_M = longest_first(loop_count_M)
    active = count_active(loop_count_M, max_loops)()
    run = PackedForward(layer, blend.take(order_M), gains_L, active, all_loops, keep_activations)
    with torch.autocast(hidden_MD.device.type, enabled=False):
        sorted_MD = run(hidden_MD.index_select(0, order_M))
    return torch.empty_like(sorted_MD).index_copy_(0, order_M, sorted_MD), run


def run_backward(
    layer: Layer,
    blend: Blend,
    gains_L: Tensor | None,
    loop_count_M: Tensor,
    max_loops: int,
    hidden_MD: Tensor,
    totals: Sequence[Tensor],
    saved: Sequence[Tensor],
    d_output_MD: Tensor,
    all_loops: bool,
    wanted: Sequence[bool],
) -> list[Tensor | None]:
    """Order the tokens again, run backward, and put gradients back into place.

    Returns:
        Gradients of hidden, p, 1 − λ, λσ, routed, γ, and of the weights that are wanted.
    """
    order_M = longest_first(loop_count_M)
    active = count_active(loop_count_M, max_loops)()
    with torch.autocast(d_output_MD.device.type, enabled=False):
        run = PackedBackward(
            layer, blend.take(order_M), gains_L, active, hidden_MD.index_select(0, order_M),
            totals, saved, d_output_MD.index_select(0, order_M),
        )  # fmt: skip
        by_token: list[Tensor | None] = [run.chain(), None, None]
        if all_loops:
            by_token[1:] = run.depth_gradients(loop_count_M[order_M])
        by_token += run.width_gradients()
        weights = run.weight_gradients(wanted)
    inverse_M = torch.empty_like(order_M)
    inverse_M[order_M] = torch.arange(len(order_M), device=order_M.device)
    unsorted = [g if g is None else g.index_select(0, inverse_M) for g in by_token]
    return [*unsorted, run.gain_gradients(), *weights]


def _split(values: list[Tensor], sizes: list[int]) -> list[list[Tensor]]:
    """Cut a list into consecutive parts."""
    ends = [0, *accumulate(sizes)]
    return [values[start:stop] for start, stop in pairwise(ends)]
