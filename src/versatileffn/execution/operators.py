"""The packed executors as torch operators, so that a compiled graph holds them without a break.

A compiler needs shapes that don't depend on values, so the training operator works in the mode
that keeps states only: everything it saves has one row for each token.

Legend: M tokens, D d_model, L max_loops, N num_experts.
"""

from functools import partial
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor

from versatileffn.execution.activation import activate_in_place, is_swiglu
from versatileffn.execution.blend import Blend
from versatileffn.execution.layer import Layer
from versatileffn.execution.norms import RMSNorm
from versatileffn.execution.order import count_active, longest_first
from versatileffn.execution.packed import Steps, run_steps
from versatileffn.execution.packed_backward import PackedBackward
from versatileffn.execution.packed_forward import PackedForward
from versatileffn.execution.plain import reads_plain_weights
from versatileffn.ffn.dense import FeedForward, Norm
from versatileffn.ffn.experts import ExpertSlices
from versatileffn.ffn.plan import ReusePlan


class SwiGLU:
    """Stands for an FFN of which only φ is used; an operator is given its weights."""

    act_fn = staticmethod(F.silu)
    gate_proj = True


def is_operable(norm: Norm, mlp: FeedForward) -> bool:
    """Whether a layer can be described to an operator: plain weights, an RMSNorm, SwiGLU."""
    return reads_plain_weights(norm, mlp) and RMSNorm.of(norm) is not None and is_swiglu(mlp)


def run_operator(hidden_MD: Tensor, norm: Norm, mlp: FeedForward, plan: ReusePlan) -> Tensor:
    """Carry out a hard plan within a compiled graph, with gradients or without.

    Source: Algorithms 1 and 2; see `packed.py` and `packed_training.py`.

    Args:
        hidden_MD: H, hidden states after attention, [M, D].
        norm, mlp: a layer for which `is_operable` holds.
        plan: a flat, hard plan for the same M tokens.

    Returns:
        Y, [M, D].
    """
    layer, blend, known = Layer.of(norm, mlp, hidden_MD), Blend.of(plan), RMSNorm.of(norm)
    assert known is not None
    slices = blend.slices or ExpertSlices(1, 1, 1)
    arguments = (
        hidden_MD, plan.loop_count, plan.loop_probs, blend.kept_M1, blend.shared_M1,
        blend.routed_MN, plan.loop_gains, known.weight, list(layer.linears), known.eps,
        known.rounds_first, [slices.num_experts, slices.d_expert, slices.d_hidden],
        blend.shared,
    )  # fmt: skip
    if torch.is_grad_enabled():
        return packed_forward(*arguments)[0]
    return packed(*arguments)


def _describe(
    kept_M1: Tensor,
    shared_M1: Tensor,
    routed_MN: Tensor | None,
    norm_weight_D: Tensor,
    linears: list[Tensor],
    eps: float,
    rounds_first: bool,
    slices: list[int],
    shared: float,
) -> tuple[Layer, Blend]:
    """What an operator's arguments stand for."""
    norm = RMSNorm(norm_weight_D, eps, rounds_first)
    layer = Layer(norm, cast(FeedForward, SwiGLU()), linears)
    known = None if routed_MN is None else ExpertSlices(*slices)
    return layer, Blend(kept_M1, shared, shared_M1, routed_MN, known)


@torch.library.custom_op(
    "versatileffn::packed", mutates_args=(), tags=(torch.Tag.cudagraph_unsafe,)
)
def packed(
    hidden: Tensor,
    loop_count: Tensor,
    loop_probs: Tensor,
    kept: Tensor,
    shared_share: Tensor,
    routed: Tensor | None,
    loop_gains: Tensor | None,
    norm_weight: Tensor,
    linears: list[Tensor],
    eps: float,
    rounds_first: bool,
    slices: list[int],
    shared: float,
) -> Tensor:
    """`run_packed` on tensors, [M, D]."""
    layer, blend = _describe(
        kept, shared_share, routed, norm_weight, linears, eps, rounds_first, slices, shared
    )
    steps = Steps(
        layer.norm,
        [partial(F.linear, weight=weight) for weight in layer.proj],
        partial(activate_in_place, layer.mlp),
        partial(F.linear, weight=layer.down),
    )
    return run_steps(hidden, steps, loop_count, loop_probs.shape[-1], blend, loop_gains)


@packed.register_fake
def _(hidden: Tensor, *_: Any) -> Tensor:
    return torch.empty_like(hidden)


@torch.library.custom_op(
    "versatileffn::packed_forward", mutates_args=(), tags=(torch.Tag.cudagraph_unsafe,)
)
def packed_forward(
    hidden: Tensor,
    loop_count: Tensor,
    loop_probs: Tensor,
    kept: Tensor,
    shared_share: Tensor,
    routed: Tensor | None,
    loop_gains: Tensor | None,
    norm_weight: Tensor,
    linears: list[Tensor],
    eps: float,
    rounds_first: bool,
    slices: list[int],
    shared: float,
) -> tuple[Tensor, Tensor]:
    """`run_recomputed` on tensors: Y, [M, D], and U_1 … U_{L−1} in order, [L − 1, M, D]."""
    layer, blend = _describe(
        kept, shared_share, routed, norm_weight, linears, eps, rounds_first, slices, shared
    )
    order_M = longest_first(loop_count)
    active = count_active(loop_count, loop_probs.shape[-1])()
    run = PackedForward(layer, blend.take(order_M), loop_gains, active, True, False)
    sorted_MD = run(hidden[order_M])
    totals = torch.stack(run.totals) if run.totals else hidden.new_empty(0, *hidden.shape)
    return torch.empty_like(sorted_MD).index_copy_(0, order_M, sorted_MD), totals


@packed_forward.register_fake
def _(hidden: Tensor, loop_count: Tensor, loop_probs: Tensor, *_: Any) -> tuple[Tensor, Tensor]:
    return torch.empty_like(hidden), hidden.new_empty(loop_probs.shape[-1] - 1, *hidden.shape)


@torch.library.custom_op(
    "versatileffn::packed_backward", mutates_args=(), tags=(torch.Tag.cudagraph_unsafe,)
)
def packed_backward(
    d_output: Tensor,
    totals: Tensor,
    hidden: Tensor,
    loop_count: Tensor,
    loop_probs: Tensor,
    kept: Tensor,
    shared_share: Tensor,
    routed: Tensor | None,
    loop_gains: Tensor | None,
    norm_weight: Tensor,
    linears: list[Tensor],
    eps: float,
    rounds_first: bool,
    slices: list[int],
    shared: float,
) -> list[Tensor]:
    """Gradients of hidden, p, 1 − λ, λσ, routed, γ, the norm's weight and the linears.

    Where there is nothing to differentiate, an empty tensor stands for None.
    """
    layer, blend = _describe(
        kept, shared_share, routed, norm_weight, linears, eps, rounds_first, slices, shared
    )
    order_M = longest_first(loop_count)
    active = count_active(loop_count, loop_probs.shape[-1])()
    run = PackedBackward(
        layer, blend.take(order_M), loop_gains, active,
        hidden[order_M], list(totals), [], d_output[order_M],
    )  # fmt: skip
    inverse_M = order_M.argsort()
    d_hidden = run.chain()[inverse_M]
    d_probs, d_kept = (grad[inverse_M] for grad in run.depth_gradients(loop_count[order_M]))
    d_shared, d_routed = (
        hidden.new_empty(0) if grad is None else grad[inverse_M] for grad in run.width_gradients()
    )
    d_gains = run.gain_gradients()
    d_gains = hidden.new_empty(0) if d_gains is None else d_gains
    weights = run.weight_gradients([True] * (1 + len(linears)))
    grads = [d_hidden, d_probs, d_kept, d_shared, d_routed, d_gains, *weights]
    return [grad.contiguous() for grad in grads if grad is not None]


@packed_backward.register_fake
def _(
    d_output: Tensor,
    totals: Tensor,
    hidden: Tensor,
    loop_count: Tensor,
    loop_probs: Tensor,
    kept: Tensor,
    shared_share: Tensor,
    routed: Tensor | None,
    loop_gains: Tensor | None,
    norm_weight: Tensor,
    linears: list[Tensor],
    eps: float,
    rounds_first: bool,
    slices: list[int],
    shared: float,
) -> list[Tensor]:
    nothing = hidden.new_empty(0)
    optional = [
        shared_share if routed is not None and shared else nothing,
        nothing if routed is None else routed,
        nothing if loop_gains is None else loop_gains,
    ]
    like = [hidden, loop_probs, kept, *optional, norm_weight, *linears]
    return [torch.empty_like(tensor, memory_format=torch.contiguous_format) for tensor in like]


def _save(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    *tensors, linears, eps, rounds_first, slices, shared = inputs
    ctx.save_for_backward(output[1], *tensors, *linears)
    ctx.settings = (eps, rounds_first, slices, shared)
    ctx.mark_non_differentiable(output[1])


def _differentiate(ctx: Any, d_output: Tensor, _: Tensor | None) -> tuple[Any, ...]:
    totals, *tensors = ctx.saved_tensors
    given, linears = tensors[:8], list(tensors[8:])
    grads = packed_backward(d_output.contiguous(), totals, *given, linears, *ctx.settings)
    d_hidden, d_probs, d_kept, d_shared, d_routed, d_gains, d_norm, *d_linears = grads
    has_width, sigma = given[5] is not None, ctx.settings[-1]
    return (
        d_hidden, None, d_probs, d_kept,
        d_shared if has_width and sigma else None,
        d_routed if has_width else None,
        None if given[6] is None else d_gains,
        d_norm, d_linears, None, None, None, None,
    )  # fmt: skip


packed_forward.register_autograd(_differentiate, setup_context=_save)
