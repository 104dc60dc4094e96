"""The packed executors as torch operators, so that a compiled graph holds them without a break.

A compiler needs shapes that don't depend on values, so the training operator works in the mode
that keeps states only: everything it saves has one row for each token.

Legend: M tokens, D d_model, L max_loops, N num_experts.
"""

from functools import partial
from typing import Any, NamedTuple, NoReturn

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.flop_counter import register_flop_formula

from versatileffn.execution.activation import Phi
from versatileffn.execution.flops import backward_flops, forward_flops, planned_loops
from versatileffn.execution.gradients import Saved, Wanted
from versatileffn.execution.layer import ReadLayer
from versatileffn.execution.norms import RMSNorm
from versatileffn.execution.order import run_in_order
from versatileffn.execution.packed import PackedForward
from versatileffn.execution.packed_training import (
    refuse_second_derivative,
    run_backward,
    run_forward,
)
from versatileffn.execution.plain import why_called, why_stepwise
from versatileffn.ffn.experts import ExpertSlices
from versatileffn.ffn.token_weights import TokenWeights
from versatileffn.ffn.view import FFNView

SWIGLU = Phi(F.silu, gated=True)


def why_no_operator(view: FFNView) -> str | None:
    """Why a layer can't be described to an operator; None if it can."""
    reason = why_called(view)
    if reason is not None:
        return reason
    stepwise = why_stepwise(view)
    if stepwise is not None:
        return stepwise
    if RMSNorm.of(view.norm) is None:
        return "the norm isn't an RMSNorm that is known"
    return None if Phi(view.act, view.gated).is_swiglu else "φ isn't SwiGLU"


def run_operator(hidden_MD: Tensor, view: FFNView, weights: TokenWeights) -> Tensor:
    """Carry out a hard plan within a compiled graph, with gradients or without.

    Source: Algorithms 1 and 2; see `packed.py` and `packed_training.py`.

    Args:
        hidden_MD: H, hidden states after attention, [M, D].
        view: an FFN for which `why_no_operator` has no reason.
        weights: of the same M tokens.

    Returns:
        (Y − H)/r, [M, D].
    """
    layer = ReadLayer.of(view, hidden_MD)
    assert isinstance(layer.norm, RMSNorm)
    slices = weights.slices or ExpertSlices(1, 1, 1)
    biases = [bias is not None for bias in layer.b_proj]
    arguments = Arguments(
        hidden_MD.contiguous(), weights.loop_count, weights.probs_ML, weights.kept_M1,
        weights.shared_M1, weights.routed_M1, weights.gates_MN, weights.gains_L, layer.tensors,
        layer.norm.eps, layer.norm.rounds_first, biases, layer.b_out is not None, layer.scale,
        [slices.num_experts, slices.d_expert, slices.d_hidden], weights.shared,
        layer.autocast is not None,
    )  # fmt: skip
    if torch.is_grad_enabled():
        return packed_forward(*arguments)[0]
    return packed(*arguments)


class Arguments(NamedTuple):
    """What an operator is given: tensors, and what describes the layer."""

    hidden_MD: Tensor
    loop_count_M: Tensor
    probs_ML: Tensor
    kept_M1: Tensor
    shared_M1: Tensor | None
    routed_M1: Tensor | None
    gates_MN: Tensor | None
    gains_L: Tensor | None
    tensors: list[Tensor]
    eps: float
    rounds_first: bool
    biases: list[bool]
    bias: bool
    scale: float
    slices: list[int]
    shared: float
    autocast: bool

    @property
    def layer(self) -> ReadLayer:
        """The layer that is described."""
        one = self.tensors[0]
        described = ReadLayer(
            RMSNorm(one, self.eps, self.rounds_first), SWIGLU, [one] * len(self.biases),
            [one if bias else None for bias in self.biases], one, one if self.bias else None,
            self.scale, self.tensors[1].dtype if self.autocast else None,
        )  # fmt: skip
        return described.with_tensors(self.tensors)

    @property
    def weights(self) -> TokenWeights:
        """The weights of each token."""
        return TokenWeights(
            *self[1:7], None if self.gates_MN is None else ExpertSlices(*self.slices),
            self.gains_L, self.shared,
        )  # fmt: skip

    @property
    def max_loops(self) -> int:
        """L."""
        return self.probs_ML.shape[-1]

    @property
    def matrices(self) -> list[Tensor]:
        """W_proj and W_out."""
        return [*self.layer.w_proj, self.layer.w_out]


SCHEMA = (
    "Tensor hidden, Tensor loop_count, Tensor probs, Tensor kept, Tensor? shared_share, "
    "Tensor? routed, Tensor? gates, Tensor? gains, Tensor[] tensors, float eps, bool rounds_first, "
    "bool[] biases, bool bias, float scale, int[] slices, float shared, bool autocast"
)
"""`Arguments`, in the language of operators."""
TENSORS = 8
"""So many of them, from the first on, are tensors or None; then comes the list."""
define = partial(torch.library.custom_op, mutates_args=(), tags=(torch.Tag.cudagraph_unsafe,))


@define("versatileffn::packed", schema=f"({SCHEMA}) -> Tensor")
def packed(*arguments: Any) -> Tensor:
    """`run_packed` on tensors, [M, D]."""
    given = Arguments(*arguments)
    return run_in_order(given.hidden_MD, given.weights, partial(PackedForward, given.layer))


@packed.register_fake
def _(*arguments: Any) -> Tensor:
    return torch.empty_like(Arguments(*arguments).hidden_MD)


@define("versatileffn::packed_forward", schema=f"({SCHEMA}) -> (Tensor, Tensor)")
def packed_forward(*arguments: Any) -> tuple[Tensor, Tensor]:
    """`run_recomputed` on tensors: (Y − H)/r, [M, D], and U_1 … U_{L−1} in order, [L − 1, M, D]."""
    given = Arguments(*arguments)
    output_MD, run = run_forward(
        given.layer, given.weights, given.hidden_MD, "states", all_loops=True
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
    """`Gradients` of hidden, p, 1 − λ, λσ, λs, gates, γ, and the layer's tensors.

    Where there is nothing to differentiate, an empty tensor stands for None.
    """
    given = Arguments(*arguments)
    wanted = Wanted(probs=True, kept=True, layer=[True] * len(given.tensors))
    saved = Saved(given.hidden_MD, list(totals))
    grads = run_backward(given.layer, given.weights, saved, d_output_MD, wanted).in_order()
    nothing = given.hidden_MD.new_empty(0)
    return [nothing.clone() if grad is None else grad.contiguous() for grad in grads]


@packed_backward.register_fake
def _(d_output_MD: Tensor, totals: Tensor, *arguments: Any) -> list[Tensor]:
    given = Arguments(*arguments)
    nothing = given.hidden_MD.new_empty(0)
    like: list[Any] = [given[0], *given[2:TENSORS], *given.tensors]
    return [
        torch.empty_like(nothing if t is None else t, memory_format=torch.contiguous_format)
        for t in like
    ]


def _save(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    given = Arguments(*inputs)
    ctx.save_for_backward(output[1], *given[:TENSORS], *given.tensors)
    ctx.settings = given[TENSORS + 1 :]
    ctx.mark_non_differentiable(output[1])


def _differentiate(ctx: Any, d_output_MD: Tensor, _: Tensor | None) -> tuple[Any, ...]:
    totals, *saved = ctx.saved_tensors
    given = Arguments(*saved[:TENSORS], saved[TENSORS:], *ctx.settings)  # type: ignore[call-arg]
    grads = packed_backward(d_output_MD.contiguous(), totals, *given)
    hidden, probs, kept, shared, routed, gates, gains, *tensors = grads
    return (
        hidden,
        None,  # the loop counts
        probs,
        kept,
        None if given.shared_M1 is None else shared,
        None if given.routed_M1 is None else routed,
        None if given.gates_MN is None else gates,
        None if given.gains_L is None else gains,
        tensors,
        *(None for _ in ctx.settings),
    )


def _refuse(ctx: Any, *_: Any) -> NoReturn:
    refuse_second_derivative()


packed_forward.register_autograd(_differentiate, setup_context=_save)
packed_backward.register_autograd(_refuse)


@register_flop_formula(torch.ops.versatileffn.packed, get_raw=True)
def _(*arguments: Any, out_val: Any = None) -> int:
    given = Arguments(*arguments)
    return forward_flops(planned_loops(given.loop_count_M), given.matrices)


@register_flop_formula(torch.ops.versatileffn.packed_forward, get_raw=True)
def _(*arguments: Any, out_val: Any = None) -> int:
    given = Arguments(*arguments)
    return forward_flops(len(given.hidden_MD) * given.max_loops, given.matrices)


@register_flop_formula(torch.ops.versatileffn.packed_backward, get_raw=True)
def _(d_output_MD: Tensor, totals: Tensor, *arguments: Any, out_val: Any = None) -> int:
    given = Arguments(*arguments)
    return backward_flops(given.loop_count_M, given.max_loops, given.matrices)
