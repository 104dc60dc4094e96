"""The backward pass of `packed_training`: loops in reverse, over the tokens that ran them.

Every tensor here is in the order of loop counts, longest first. With G = ∂Y and the gradient
d_H_ℓ of a token's state, Y = λ·Y_width + (1 − λ)·H_ℓ̂ gives

    d_H_ℓ̂ = (1 − λ) G        d_H_{ℓ−1} = d_H_ℓ + (∂ γ_ℓ W_out a_ℓ / ∂ H_{ℓ−1})ᵀ d_H_ℓ

What each weight is multiplied by, and the gradient of the product, are collected over all loops,
Σ ℓ̂ rows of them, so that each weight's gradient is one product.

Legend: M tokens, D d_model, F d_hidden, L max_loops, N num_experts, K top_k, R tokens still
running, S = Σ ℓ̂ rows; U_ℓ = H_ℓ − H₀; `d_x` is the gradient of the loss in x.
"""

from collections.abc import Sequence
from itertools import accumulate

import torch
from torch import Tensor

from versatileffn.execution.activation import Activation, activate_in_place
from versatileffn.execution.blend import Blend
from versatileffn.execution.packed_forward import Weights
from versatileffn.ffn.dense import FeedForward, Norm
from versatileffn.ffn.plan import ReusePlan

PlanGradients = tuple[
    Tensor | None, Tensor | None, Tensor | None, Tensor | None, Tensor | None
]


class PackedBackward:
    """One backward pass.

    Args:
        norm, mlp: the layer; of the FFN only φ is used.
        weights: as the forward pass used them.
        plan: the plan, in the order of loop counts.
        active: tokens that run loop 1, 2, … L, then 0.
        start_MD: H₀.
        totals: U_1 … U_{L−1}, as the forward pass left them.
        saved: the projections, as the forward pass left them; empty to compute them again.
        d_output_MD: G.
    """

    def __init__(
        self,
        norm: Norm,
        mlp: FeedForward,
        weights: Weights,
        plan: ReusePlan,
        active: list[int],
        start_MD: Tensor,
        totals: Sequence[Tensor],
        saved: Sequence[Tensor],
        d_output_MD: Tensor,
    ) -> None:
        self.norm, self.mlp, self.weights, self.plan, self.active = norm, mlp, weights, plan, active
        self.start_MD, self.totals, self.saved = start_MD, totals, saved
        self.d_output_MD, self.blend = d_output_MD, Blend.of(plan)
        down_DF = weights.down
        self.wide = torch.promote_types(down_DF.dtype, torch.float32)
        self.d_exit_MD = d_output_MD.to(down_DF.dtype)
        self.v_MF = self.d_exit_MD @ down_DF

        self.offsets = [0, *accumulate(active)]
        (D, F), rows = down_DF.shape, sum(active)
        self.x_SD = down_DF.new_empty(rows, D)
        self.a_SF = down_DF.new_empty(rows, F)
        self.d_update_SD = down_DF.new_empty(rows, D)
        self.d_projected_SF = [down_DF.new_empty(rows, F) for _ in weights.proj]
        self.d_norm = [torch.zeros_like(weight) for weight in weights.norm]
        self.d_gains = [plan.lam.new_zeros((), dtype=self.wide)] * plan.max_loops
        self.last_dot_M = plan.lam.new_zeros(len(start_MD), dtype=self.wide)  # ⟨v, a_L⟩
        self.first_products_MF: Tensor | None = None  # v ⊙ a₁

    def chain(self) -> Tensor:
        """Go through the loops in reverse; the gradient of H₀, [M, D]."""
        d_state_RD = self.d_output_MD[:0]
        for loop in reversed(range(self.plan.max_loops)):
            if self.active[loop]:
                d_state_RD = self._loop(loop, d_state_RD)
        return d_state_RD + self.plan.lam[:, None].to(d_state_RD.dtype) * self.d_output_MD

    def _loop(self, loop: int, d_next_RD: Tensor) -> Tensor:
        """From the gradient of H_ℓ for tokens that go on to that of H_{ℓ−1} for all that ran ℓ."""
        running, staying = self.active[loop], self.active[loop + 1]
        leave, here = slice(staying, running), self._rows(loop)
        gain = None if self.plan.loop_gains is None else self.plan.loop_gains[loop]
        with torch.enable_grad():
            state_RD = self._state(loop, slice(running)).detach().requires_grad_()
            x_RD = self.norm(state_RD)
        self.x_SD[here] = x_RD.detach()
        projected_RF = self._projected(loop, self.x_SD[here])
        a_RF = self.a_SF[here]
        phi = Activation(self.mlp, projected_RF, a_RF, [d[here] for d in self.d_projected_SF])

        d_a_RF = torch.empty_like(a_RF)
        torch.mm(d_next_RD.to(a_RF.dtype), self.weights.down, out=d_a_RF[:staying])
        kept_R1 = self.blend.kept_M1[leave]
        torch.mul(self.v_MF[leave], kept_R1.to(a_RF.dtype), out=d_a_RF[leave])
        if gain is not None:
            self.d_gains[loop] = (d_a_RF * a_RF).sum(dtype=self.wide)
            d_a_RF *= gain.to(d_a_RF.dtype)
        if loop == 0:
            d_a_RF += self.blend.first_loop(self.v_MF, torch.zeros_like(self.blend.kept_M1))
            self.first_products_MF = self.v_MF * a_RF
        if loop + 1 == self.plan.max_loops:
            self.last_dot_M[:running] = self._dot(self.v_MF[:running], a_RF)
        phi.backward(d_a_RF)
        self._exit_products(loop, d_next_RD, gain)

        d_x_RD = self.d_projected_SF[0][here] @ self.weights.proj[0]
        for d_rows_SF, weight_FD in zip(
            self.d_projected_SF[1:], self.weights.proj[1:], strict=True
        ):
            d_x_RD.addmm_(d_rows_SF[here], weight_FD)
        d_leaving_RD = kept_R1.to(d_next_RD.dtype) * self.d_output_MD[leave]
        return self._through_norm(state_RD, x_RD, d_x_RD).add_(
            torch.cat([d_next_RD, d_leaving_RD])
        )

    def _rows(self, loop: int) -> slice:
        """Where this loop's rows are among those of all loops."""
        return slice(self.offsets[loop], self.offsets[loop + 1])

    def _state(self, loop: int, rows: slice) -> Tensor:
        """H_{ℓ−1} of some tokens, [R, D]."""
        start_RD = self.start_MD[rows]
        return start_RD + self.totals[loop - 1][rows] if loop else start_RD

    def _projected(self, loop: int, x_RD: Tensor) -> Sequence[Tensor]:
        """W_proj x of the tokens that run this loop, saved or computed again."""
        if not self.saved:
            return self.weights.project(x_RD)
        step = len(self.weights.proj)
        return self.saved[loop * step : (loop + 1) * step]

    def _exit_products(self, loop: int, d_next_RD: Tensor, gain: Tensor | None) -> None:
        """Lay down what W_out multiplied in this loop and the gradient of the product."""
        running, staying = self.active[loop], self.active[loop + 1]
        leave, first = slice(staying, running), self.offsets[loop]
        a_RF, d_update_RD = self.a_SF[self._rows(loop)], self.d_update_SD[self._rows(loop)]
        d_stay_RD = d_next_RD if gain is None else gain.to(d_next_RD.dtype) * d_next_RD
        if loop == 0 and self.plan.shared:
            # The width pathway's shared part, σ·W_out a₁, was taken from loop 1's update.
            lam_R1 = self.plan.lam[:staying, None].to(d_next_RD.dtype)
            d_stay_RD = d_stay_RD + self.plan.shared * lam_R1 * self.d_output_MD[:staying]
        d_update_RD[:staying] = d_stay_RD
        d_update_RD[staying:] = self.d_exit_MD[leave]
        if loop == 0:
            self._add_width(self.blend.take(slice(staying)).routed(a_RF[:staying]))
        weight_R1 = self.blend.kept_M1[leave]
        weight_R1 = weight_R1 if gain is None else weight_R1 * gain
        leaving_RF = self.a_SF[first + staying : first + running]
        if loop == 0:
            self.blend.take(leave).first_loop(leaving_RF, weight_R1, out=leaving_RF)
        else:
            leaving_RF *= weight_R1.to(leaving_RF.dtype)

    def _add_width(self, width_RF: Tensor | None) -> None:
        """Add λ·s·m ⊙ a₁ to what the last down-projection of each token multiplied."""
        if width_RF is None:
            return
        for loop in range(1, self.plan.max_loops):
            exits = slice(self.active[loop + 1], self.active[loop])
            first = self.offsets[loop]
            self.a_SF[first + exits.start : first + exits.stop] += width_RF[exits]

    def _through_norm(self, state_RD: Tensor, x_RD: Tensor, d_x_RD: Tensor) -> Tensor:
        trained = [weight for weight in self.weights.norm if weight.requires_grad]
        d_state_RD, *d_norm = torch.autograd.grad(
            x_RD, [state_RD, *trained], d_x_RD.to(x_RD.dtype)
        )
        parts = iter(d_norm)
        for index, weight in enumerate(self.weights.norm):
            if weight.requires_grad:
                self.d_norm[index] += next(parts)
        return d_state_RD

    def _dot(self, a: Tensor, b: Tensor) -> Tensor:
        """Dot products of rows, in at least float32, [R]."""
        return (a * b).sum(-1, dtype=self.wide)

    def plan_gradients(self, all_loops: bool) -> PlanGradients:
        """Gradients of p [M, L] (up to a constant for each token), λ [M], gates [M, K], s and γ [L].

        Source: (1 − λ) ⟨G, U_ℓ⟩ for p, ⟨G, U_width − U_ℓ̂⟩ for λ.

        Args:
            all_loops: whether the forward pass ran every loop; p and λ have no gradient otherwise.
        """
        plan, gains = self.plan, self.plan.loop_gains
        d_gains_L = None if gains is None else torch.stack(self.d_gains).to(gains.dtype)
        d_probs_ML = d_lam_M = d_gates_MK = d_width_gain = None
        if all_loops:
            dots_ML = self._state_dots()
            d_probs_ML = (self.blend.kept_M1 * dots_ML).to(plan.loop_probs.dtype)
            d_lam_M = -dots_ML.gather(-1, plan.loop_count[:, None] - 1).squeeze(-1)
        if plan.gates is not None and plan.experts is not None and plan.slices is not None:
            assert self.first_products_MF is not None
            by_expert_MN = plan.slices.sum_neurons(self.first_products_MF, dtype=self.wide)
            by_expert_MK = by_expert_MN.gather(-1, plan.experts)
            width_gain = 1.0 if plan.width_gain is None else plan.width_gain
            d_gates_MK = (plan.lam[:, None] * width_gain * by_expert_MK).to(plan.gates.dtype)
            routed_M = (plan.gates * by_expert_MK).sum(-1)
            if d_lam_M is not None:
                d_lam_M += width_gain * routed_M
            if d_lam_M is not None and plan.shared:
                d_lam_M += plan.shared * self.first_products_MF.sum(-1, dtype=self.wide)
            if plan.width_gain is not None:
                d_width_gain = (plan.lam * routed_M).sum().to(plan.width_gain.dtype)
        d_lam_M = None if d_lam_M is None else d_lam_M.to(plan.lam.dtype)
        return d_probs_ML, d_lam_M, d_gates_MK, d_width_gain, d_gains_L

    def _state_dots(self) -> Tensor:
        """⟨G, U_ℓ⟩ of every loop, [M, L]."""
        dots = [self._dot(self.d_output_MD, total_MD) for total_MD in self.totals]
        last, rest = self.plan.max_loops - 1, slice(self.active[-2], None)
        if self.active[-2] < len(self.start_MD):
            if self.saved:
                last_RF = self.saved[-1]
            else:
                x_RD = self.norm(self._state(last, rest))
                last_RF = activate_in_place(self.mlp, self.weights.project(x_RD))
            self.last_dot_M[rest] = self._dot(self.v_MF[rest], last_RF)
        gains = self.plan.loop_gains
        last_M = self.last_dot_M if gains is None else gains[-1] * self.last_dot_M
        dots.append(dots[-1] + last_M if dots else last_M)
        return torch.stack(dots, dim=-1)

    def weight_gradients(self, wanted: Sequence[torch.dtype | None]) -> list[Tensor | None]:
        """Gradients of the norm's weights and the linears', each in the dtype given, if any."""
        rows = [(d_rows_SF, self.x_SD) for d_rows_SF in self.d_projected_SF]
        rows.append((self.d_update_SD, self.a_SF))
        split = len(self.d_norm)
        return [
            *(d.to(t) if t else None for d, t in zip(self.d_norm, wanted[:split], strict=True)),
            *((d.T @ x).to(t) if t else None for (d, x), t in zip(rows, wanted[split:], strict=True)),
        ]
