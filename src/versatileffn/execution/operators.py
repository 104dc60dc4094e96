"""The packed executors as torch operators, so that a compiled graph holds them without a break.

A compiler needs shapes that don't depend on values, so the training operator works in the mode
that keeps states only: everything it saves has one row for each token.

Legend: M tokens, D d_model, L max_loops, N num_experts.
"""

from functools import partial
from typing import Any, NamedTuple, NoReturn, cast

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.flop_counter import register_flop_formula

from versatileffn.execution.activation import activate_in_place, is_swiglu
from versatileffn.execution.blend import Blend
from versatileffn.execution.flops import backward_flops, forward_flops, planned_loops
from versatileffn.execution.layer import Layer
from versatileffn.execution.norms import RMSNorm
from versatileffn.execution.packed import Steps, run_steps
from versatileffn.execution.packed_training import (
    refuse_second_derivative,
    run_backward,
    run_forward,
)
from versatileffn.execution.plain import reads_plain_weights
from versatileffn.ffn.dense import FeedForward, Norm
from versatileffn.ffn.experts import ExpertSlices
from versatileffn.ffn.plan import ReusePlan


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
    arguments = Arguments(
        hidden_MD.contiguous(),
        plan.loop_count,
        plan.loop_probs,
        blend.kept_M1,
        blend.shared_M1,
        blend.routed_MN,
        plan.loop_gains,
        known.weight,
        list(layer.linears),
        known.eps,
        known.rounds_first,
        [slices.num_experts, slices.d_expert, slices.d_hidden],
        blend.shared,
        layer.autocast is not None,
    )
    if torch.is_grad_enabled():
        return packed_forward(*arguments)[0]
    return packed(*arguments)


class Arguments(NamedTuple):
    """What an operator is given: tensors, and what describes the layer."""

    hidden_MD: Tensor
    loop_count_M: Tensor
    loop_probs_ML: Tensor
    kept_M1: Tensor
    shared_M1: Tensor
    routed_MN: Tensor | None
    loop_gains_L: Tensor | None
    norm_weight_D: Tensor
    linears: list[Tensor]
    eps: float
    rounds_first: bool
    slices: list[int]
    shared: float
    autocast: bool

    @property
    def layer(self) -> Layer:
        """The layer that is described."""
        norm = RMSNorm(self.norm_weight_D, self.eps, self.rounds_first)
        autocast = self.linears[-1].dtype if self.autocast else None
        return Layer(norm, cast(FeedForward, SwiGLU()), self.linears, autocast)

    @property
    def blend(self) -> Blend:
        """The weights of each token."""
        slices = None if self.routed_MN is None else ExpertSlices(*self.slices)
        return Blend(self.kept_M1, self.shared, self.shared_M1, self.routed_MN, slices)

    @property
    def max_loops(self) -> int:
        """L."""
        return self.loop_probs_ML.shape[-1]


class SwiGLU:
    """Stands for an FFN of which only φ is used; an operator is given its weights."""

    act_fn = staticmethod(F.silu)
    gate_proj = True


SCHEMA = (
    "Tensor hidden, Tensor loop_count, Tensor loop_probs, Tensor kept, Tensor shared_share, "
    "Tensor? routed, Tensor? loop_gains, Tensor norm_weight, Tensor[] linears, float eps, "
    "bool rounds_first, int[] slices, float shared, bool autocast"
)
"""`Arguments`, in the language of operators."""
define = partial(torch.library.custom_op, mutates_args=(), tags=(torch.Tag.cudagraph_unsafe,))


@define("versatileffn::packed", schema=f"({SCHEMA}) -> Tensor")
def packed(*arguments: Any) -> Tensor:
    """`run_packed` on tensors, [M, D]."""
    given = Arguments(*arguments)
    layer = given.layer
    steps = Steps(
        layer.norm,
        layer.project,
        partial(activate_in_place, layer.mlp),
        partial(F.linear, weight=layer.down),
    )
    return run_steps(
        given.hidden_MD,
        steps,
        given.loop_count_M,
        given.max_loops,
        given.blend,
        given.loop_gains_L,
    )


@packed.register_fake
def _(*arguments: Any) -> Tensor:
    return torch.empty_like(Arguments(*arguments).hidden_MD)


@define("versatileffn::packed_forward", schema=f"({SCHEMA}) -> (Tensor, Tensor)")
def packed_forward(*arguments: Any) -> tuple[Tensor, Tensor]:
    """`run_recomputed` on tensors: Y, [M, D], and U_1 … U_{L−1} in order, [L − 1, M, D]."""
    given = Arguments(*arguments)
    output_MD, run = run_forward(
        given.layer,
        given.blend,
        given.loop_gains_L,
        given.loop_count_M,
        given.max_loops,
        given.hidden_MD,
        all_loops=True,
        keep_activations=False,
    )
    nothing = given.hidden_MD.new_empty(0, *given.hidden_MD.shape)
    return output_MD, torch.stack(run.totals) if run.totals else nothing


@packed_forward.register_fake
def _(*arguments: Any) -> tuple[Tensor, Tensor]:
    given = Arguments(*arguments)
    totals = given.hidden_MD.new_empty(given.max_loops - 1, *given.hidden_MD.shape)
    return torch.empty_like(given.hidden_MD), totals


@define(
    "versatileffn::packed_backward",
    schema=f"(Tensor d_output, Tensor totals, {SCHEMA}) -> Tensor[]",
)
def packed_backward(d_output_MD: Tensor, totals: Tensor, *arguments: Any) -> list[Tensor]:
    """Gradients of hidden, p, 1 − λ, λσ, routed, γ, the norm's weight and the linears.

    Where there is nothing to differentiate, an empty tensor stands for None.
    """
    given = Arguments(*arguments)
    grads = run_backward(
        given.layer,
        given.blend,
        given.loop_gains_L,
        given.loop_count_M,
        given.max_loops,
        given.hidden_MD,
        list(totals),
        [],
        d_output_MD,
        all_loops=True,
        wanted=[True] * (1 + len(given.linears)),
    )
    nothing = given.hidden_MD.new_empty(0)
    return [nothing.clone() if grad is None else grad.contiguous() for grad in grads]


@packed_backward.register_fake
def _(d_output_MD: Tensor, totals: Tensor, *arguments: Any) -> list[Tensor]:
    given = Arguments(*arguments)
    nothing = given.hidden_MD.new_empty(0)
    has_sigma = given.routed_MN is not None and given.shared
    like = [
        given.hidden_MD,
        given.loop_probs_ML,
        given.kept_M1,
        given.shared_M1 if has_sigma else nothing,
        nothing if given.routed_MN is None else given.routed_MN,
        nothing if given.loop_gains_L is None else given.loop_gains_L,
        given.norm_weight_D,
        *given.linears,
    ]
    return [torch.empty_like(t, memory_format=torch.contiguous_format) for t in like]


def _save(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    given = Arguments(*inputs)
    ctx.save_for_backward(output[1], *given[:8], *given.linears)
    ctx.settings = given[9:]
    ctx.mark_non_differentiable(output[1])


def _differentiate(ctx: Any, d_output_MD: Tensor, _: Tensor | None) -> tuple[Any, ...]:
    totals, *saved = ctx.saved_tensors
    given = Arguments(*saved[:8], saved[8:], *ctx.settings)  # type: ignore[call-arg]
    grads = packed_backward(d_output_MD.contiguous(), totals, *given)
    d_hidden, d_probs, d_kept, d_shared, d_routed, d_gains, d_norm, *d_linears = grads
    has_width = given.routed_MN is not None
    return (
        d_hidden,
        None,
        d_probs,
        d_kept,
        d_shared if has_width and given.shared else None,
        d_routed if has_width else None,
        None if given.loop_gains_L is None else d_gains,
        d_norm,
        d_linears,
        *(None for _ in ctx.settings),
    )


def _refuse(ctx: Any, *_: Any) -> NoReturn:
    refuse_second_derivative()


packed_forward.register_autograd(_differentiate, setup_context=_save)
packed_backward.register_autograd(_refuse)


@register_flop_formula(torch.ops.versatileffn.packed, get_raw=True)
def _(*arguments: Any, out_val: Any = None) -> int:
    given = Arguments(*arguments)
    return forward_flops(planned_loops(given.loop_count_M), given.linears)


@register_flop_formula(torch.ops.versatileffn.packed_forward, get_raw=True)
def _(*arguments: Any, out_val: Any = None) -> int:
    given = Arguments(*arguments)
    return forward_flops(len(given.hidden_MD) * given.max_loops, given.linears)


@register_flop_formula(torch.ops.versatileffn.packed_backward, get_raw=True)
def _(d_output_MD: Tensor, totals: Tensor, *arguments: Any, out_val: Any = None) -> int:
    given = Arguments(*arguments)
    return backward_flops(given.loop_count_M, given.max_loops, given.linears)
