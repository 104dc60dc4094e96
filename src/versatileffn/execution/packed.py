"""Each token runs its own ℓ̂ loops and stops: Σ ℓ̂ FFN applications, no more. For inference.

With U_ℓ = H_ℓ − H₀, a token's last down-projection carries the blend of its last loop and of the
virtual experts, and the shared part of the width pathway is σ·U₁, which loop 1 already computed:

    Y = H₀ + λσU₁ + (1 − λ) U_{ℓ̂−1} + W_out[ (1 − λ) γ_ℓ̂ a_ℓ̂ + λ s·m ⊙ a₁ ]        for ℓ̂ > 1

Legend: M tokens, D d_model, F d_hidden, L max_loops, R tokens still running.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from versatileffn.errors import PlanError
from versatileffn.execution.activation import activate_in_place
from versatileffn.execution.blend import Blend
from versatileffn.execution.order import count_active, longest_first
from versatileffn.execution.plain import is_plain
from versatileffn.ffn.dense import FeedForward, Norm, activate, linears, output_bias
from versatileffn.ffn.plan import ReusePlan

BLOCK = 512
"""Tokens at once on the CPU: enough for matrix products at full speed, few enough that their
hidden activations stay in memory that the process has already touched."""


@dataclass(frozen=True)
class Steps:
    """The steps of one loop.

    Args:
        norm: the norm before the FFN.
        project: x -> gate (if any) and up, which phi may overwrite.
        phi: a from these.
        down: a -> W_out a, with its bias if it has one.
        bias_D: W_out's bias.
    """

    norm: Norm
    project: Callable[[Tensor], list[Tensor]]
    phi: Callable[[Sequence[Tensor]], Tensor]
    down: Callable[[Tensor], Tensor]
    bias_D: Tensor | None = None

    @classmethod
    def of(cls, norm: Norm, mlp: FeedForward) -> "Steps":
        """Call a layer's modules, so that whatever wraps them takes part."""
        *proj, down = linears(mlp)
        bias_D = output_bias(mlp)

        def project(x_RD: Tensor) -> list[Tensor]:
            return [linear(x_RD) for linear in proj]

        if is_plain(mlp):
            return cls(norm, project, lambda values: activate_in_place(mlp, values), down, bias_D)

        def phi(values: Sequence[Tensor]) -> Tensor:
            a_RF = activate(mlp, *values)
            return a_RF.clone() if a_RF is values[0] else a_RF  # what a hook may have kept

        return cls(norm, project, phi, down, bias_D)


def run_packed(hidden_MD: Tensor, norm: Norm, mlp: FeedForward, plan: ReusePlan) -> Tensor:
    """Carry out a hard plan without gradients. Source: Algorithm 2.

    Args:
        hidden_MD: H, hidden states after attention, [M, D].
        norm: the norm before the FFN.
        mlp: the FFN; its linears are called.
        plan: a flat plan for the same M tokens.

    Returns:
        Y, [M, D].

    Raises:
        PlanError: the plan is soft, so no token may stop early.
    """
    if not plan.hard:
        raise PlanError("a soft plan mixes all loops: it needs execution='masked'")
    steps = Steps.of(norm, mlp)
    return run_steps(
        hidden_MD, steps, plan.loop_count, plan.max_loops, Blend.of(plan), plan.loop_gains
    )


def run_steps(
    hidden_MD: Tensor,
    steps: Steps,
    loop_count_M: Tensor,
    max_loops: int,
    blend: Blend,
    gains_L: Tensor | None,
) -> Tensor:
    """`run_packed` for a plan in parts, [M, D]."""
    count = count_active(loop_count_M, max_loops)
    if not hidden_MD.is_cuda and set(count()) <= {0, len(hidden_MD)}:  # all alike: in order
        return _run_blocks(hidden_MD, steps, blend, gains_L, count)
    order_M = longest_first(loop_count_M)
    sorted_MD = _run_blocks(
        hidden_MD.index_select(0, order_M), steps, blend.take(order_M), gains_L, count
    )
    return torch.empty_like(sorted_MD).index_copy_(0, order_M, sorted_MD)


def _run_blocks(
    start_MD: Tensor,
    steps: Steps,
    blend: Blend,
    gains_L: Tensor | None,
    count: Callable[[], list[int]],
) -> Tensor:
    """Run tokens that are in order, a block at a time, [M, D]."""
    tokens = len(start_MD)
    if start_MD.is_cuda or tokens <= BLOCK:
        return _run(start_MD, steps, blend, gains_L, count)
    output_MD = torch.empty_like(start_MD)
    for first in range(0, tokens, BLOCK):
        rows = slice(first, min(first + BLOCK, tokens))
        here = [min(max(running - first, 0), rows.stop - first) for running in count()]
        output_MD[rows] = _run(
            start_MD[rows], steps, blend.take(rows), gains_L, partial(list, here)
        )
    return output_MD


def _run(
    start_MD: Tensor,
    steps: Steps,
    blend: Blend,
    gains_L: Tensor | None,
    count: Callable[[], list[int]],
) -> Tensor:
    """Run the loops over a shrinking prefix of tokens, [M, D]."""
    output_MD = torch.empty_like(start_MD)
    total_RD = _Total(blend.shared)
    width_RF = None  # λ·s·m ⊙ a₁ of the tokens still running
    running, loop = len(start_MD), 0
    while running:
        x_RD = steps.norm(total_RD.state(start_MD[:running]))
        a_RF = steps.phi(steps.project(x_RD))
        staying = count()[loop + 1]
        stay, leave = slice(staying), slice(staying, running)
        gain = None if gains_L is None else gains_L[loop]
        if loop == 0 and staying:
            width_RF = blend.take(stay).routed(a_RF[stay])
        if staying < running:
            leaving = blend.take(leave)
            weight_R1 = leaving.kept_M1 if gain is None else leaving.kept_M1 * gain
            if loop == 0:
                leaving.first_loop(a_RF[leave], weight_R1, out=a_RF[leave])
            elif width_RF is None:
                a_RF[leave] *= weight_R1.to(a_RF.dtype)
            else:
                w_R1 = weight_R1.to(a_RF.dtype)
                torch.addcmul(width_RF[leave], a_RF[leave], w_R1, out=a_RF[leave])
        update_RD = steps.down(a_RF)
        if staying < running:
            if steps.bias_D is not None:
                # W_out's bias was added once; the plan wants (1 − λ)γ of it, and λ for the width
                # pathway, whose shared part has it from loop 1.
                missing = 1.0 if loop == 0 else 1.0 - blend.shared
                times_R1 = weight_R1 + missing * (1 - leaving.kept_M1)
                update_RD[leave] += (times_R1 - 1).to(update_RD.dtype) * steps.bias_D
            base_RD = total_RD.base(start_MD[leave], leave, leaving.kept_M1)
            torch.add(base_RD, update_RD[leave], out=output_MD[leave])
        if staying:
            total_RD.add(update_RD[stay].to(start_MD.dtype), gain)
        running, loop = staying, loop + 1
    return output_MD


class _Total:
    """U_ℓ of the tokens still running, and σ·U₁.

    Args:
        shared: σ.
    """

    def __init__(self, shared: float) -> None:
        self.shared = shared
        self.sum_RD: Tensor | None = None
        self.shared_RD: Tensor | None = None

    def state(self, start_RD: Tensor) -> Tensor:
        """H_ℓ, [R, D], from H₀."""
        return start_RD if self.sum_RD is None else start_RD + self.sum_RD

    def base(self, start_RD: Tensor, leave: slice, kept_R1: Tensor) -> Tensor:
        """What tokens that leave have before their last update: H₀ + λσU₁ + (1 − λ)U_{ℓ̂−1}."""
        if self.sum_RD is None:
            return start_RD
        kept_R1 = kept_R1.to(start_RD.dtype)
        if self.shared_RD is None:
            return torch.addcmul(start_RD, self.sum_RD[leave], kept_R1)
        return start_RD + torch.lerp(self.shared_RD[leave], self.sum_RD[leave], kept_R1)

    def add(self, step_RD: Tensor, gain: Tensor | None) -> None:
        """Go on with the tokens that stay, by one more γ·W_out a."""
        if self.sum_RD is None and self.shared:
            self.shared_RD = self.shared * step_RD
        if gain is not None:
            step_RD = gain.to(step_RD.dtype) * step_RD
        # `sum_RD` may be what a hook has kept of W_out's output: it isn't written to.
        self.sum_RD = step_RD if self.sum_RD is None else self.sum_RD[: len(step_RD)] + step_RD
