"""The backward pass of `packed_training`: loops in reverse, over the tokens that ran them.

Every tensor here is in the order of loop counts, longest first. With G the gradient of the update
and d_U_ℓ that of U_ℓ,

    d_U_ℓ̂ = (1 − λ) G        d_U_{ℓ−1} = d_U_ℓ + r·Jᵀd_U_ℓ        d_H₀ = Σ_ℓ Jᵀd_U_ℓ

where J is the Jacobian of γ_ℓ W_out a_ℓ in H_{ℓ−1}; the width pathway joins in loop 1.

What each weight is multiplied by, and the gradient of the product, are collected over all loops,
Σ ℓ̂ rows of them, so that each weight's gradient is one product.

Legend: M tokens, D d_model, F d_hidden, L max_loops, N num_experts, R tokens still running,
S = Σ ℓ̂ rows; `d_x` is the gradient of the loss in x.
"""

from collections.abc import Sequence
from itertools import accumulate

import torch
from torch import Tensor

from versatileffn.execution.activation import PhiBackward
from versatileffn.execution.gradients import Gradients, Saved, Wanted, row_dots
from versatileffn.execution.layer import ReadLayer
from versatileffn.execution.packed import bias_times, gain_of, state
from versatileffn.ffn.token_weights import TokenWeights


class PackedBackward:
    """One backward pass.

    Args:
        layer: as the forward pass read it.
        weights: of the tokens.
        active: tokens that run loop 1, 2, … L, then 0.
        saved: what the forward pass kept.
        d_output_MD: G.
    """

    def __init__(
        self,
        layer: ReadLayer,
        weights: TokenWeights,
        active: list[int],
        saved: Saved,
        d_output_MD: Tensor,
    ) -> None:
        self.layer, self.weights, self.active, self.saved = layer, weights, active, saved
        self.d_output_MD, self.max_loops = d_output_MD, len(active) - 1
        w_out = layer.w_out
        self.wide = torch.promote_types(w_out.dtype, torch.float32)
        self.d_exit_MD = d_output_MD.to(w_out.dtype)
        self.v_MF = self.d_exit_MD @ w_out

        self.offsets = [0, *accumulate(active)]
        (D, F), rows = w_out.shape, sum(active)
        self.x_SD = w_out.new_empty(rows, D)
        self.a_SF = w_out.new_empty(rows, F)
        self.d_update_SD = w_out.new_empty(rows, D)
        self.d_projected = [w_out.new_empty(rows, len(weight)) for weight in layer.w_proj]
        self.d_start_MD = torch.zeros_like(d_output_MD)
        self.d_norm = [torch.zeros_like(weight) for weight in layer.norm.weights]
        self.d_b_out = None if layer.b_out is None else torch.zeros_like(layer.b_out)
        self.bias_dot_M = (
            None if layer.b_out is None else row_dots(self.d_exit_MD, layer.b_out.expand(1, -1))
        )
        self.d_gains = [self.v_MF.new_zeros((), dtype=self.wide)] * self.max_loops
        # ⟨G, γ_ℓ̂ (W_out a_ℓ̂ + b)⟩, what the last loop adds to ⟨G, U_ℓ̂⟩
        self.exit_dot_M = self.v_MF.new_zeros(len(d_output_MD), dtype=self.wide)
        self.first_products_MF = self.v_MF[:0]  # v ⊙ a₁

    def __call__(self, wanted: Wanted) -> Gradients:
        """Go through the loops in reverse."""
        d_next_RD = self.d_output_MD[:0]
        for loop in reversed(range(self.max_loops)):
            if self.active[loop]:
                d_next_RD = self._loop(loop, d_next_RD)
        d_shared_M1, d_routed_M1, d_gates_MN = self._width_gradients()
        gains_L = self.weights.gains_L
        return Gradients(
            hidden=self.d_start_MD,
            probs=self._probs_gradient() if wanted.probs else None,
            kept=self._kept_gradient() if wanted.kept else None,
            shared=d_shared_M1,
            routed=d_routed_M1,
            gates=d_gates_MN,
            gains=None if gains_L is None else torch.stack(self.d_gains).to(gains_L.dtype),
            layer=self._layer_gradients(wanted.layer),
        )

    def _loop(self, loop: int, d_next_RD: Tensor) -> Tensor:
        """From d_U_ℓ of tokens that go on to d_U_{ℓ−1} of all that ran loop ℓ."""
        running, staying = self.active[loop], self.active[loop + 1]
        leave, here = slice(staying, running), self._rows(loop)
        gain, weights = gain_of(self.weights, loop), self.weights
        x_RD, norm_backward = self.layer.norm.with_backward(self._state(loop, slice(running)))
        self.x_SD[here] = x_RD
        projected = self._projected(loop, self.x_SD[here])
        a_RF = self.a_SF[here]
        phi = PhiBackward(self.layer.phi, projected, a_RF, [d[here] for d in self.d_projected])

        d_a_RF = torch.empty_like(a_RF)
        torch.mm(d_next_RD.to(a_RF.dtype), self.layer.w_out, out=d_a_RF[:staying])
        kept_R1 = weights.kept_M1[leave]
        torch.mul(self.v_MF[leave], kept_R1.to(a_RF.dtype), out=d_a_RF[leave])
        d_leaving_RD = kept_R1.to(d_next_RD.dtype) * self.d_output_MD[leave]
        d_total_RD = torch.cat([d_next_RD, d_leaving_RD])
        exit_dot_R = self._with_bias(row_dots(self.v_MF[leave], a_RF[leave]), leave)
        self.exit_dot_M[leave] = exit_dot_R if gain is None else gain * exit_dot_R
        if gain is not None:
            self.d_gains[loop] = row_dots(d_a_RF, a_RF).sum()
            if self.layer.b_out is not None:
                self.d_gains[loop] += d_total_RD.sum(0) @ self.layer.b_out.to(d_total_RD.dtype)
            d_a_RF *= gain.to(d_a_RF.dtype)
        if loop == 0 and (weights.shared_M1 is not None or weights.gates_MN is not None):
            d_a_RF += weights.first_loop(self.v_MF, torch.zeros_like(weights.kept_M1))
            self.first_products_MF = self.v_MF * a_RF
        phi(d_a_RF)
        self._exit_products(loop, d_next_RD, gain)

        d_x_RD = self.d_projected[0][here] @ self.layer.w_proj[0]
        for d_rows, weight in zip(self.d_projected[1:], self.layer.w_proj[1:], strict=True):
            torch.addmm(d_x_RD, d_rows[here], weight, out=d_x_RD)  # torch counts no addmm_
        d_state_RD, d_norm = norm_backward(d_x_RD)
        for total, part in zip(self.d_norm, d_norm, strict=True):
            total += part
        self.d_start_MD[:running] += d_state_RD
        return torch.add(d_total_RD, d_state_RD, alpha=self.layer.scale)

    def _rows(self, loop: int) -> slice:
        """Where this loop's rows are among those of all loops."""
        return slice(self.offsets[loop], self.offsets[loop + 1])

    def _state(self, loop: int, rows: slice) -> Tensor:
        """H_{ℓ−1} of some tokens, [R, D]."""
        total_RD = self.saved.totals[loop - 1][rows] if loop else None
        return state(self.saved.start_MD[rows], total_RD, self.layer.scale)

    def _projected(self, loop: int, x_RD: Tensor) -> list[Tensor]:
        """W_proj x of the tokens that run this loop, saved or computed again."""
        if not self.saved.projected:
            return self.layer.project(x_RD)
        step = len(self.layer.w_proj)
        return list(self.saved.projected[loop * step : (loop + 1) * step])

    def _with_bias(self, dot_R: Tensor, rows: slice) -> Tensor:
        """⟨G, W_out a + b⟩ from ⟨v, a⟩, [R]."""
        return dot_R if self.bias_dot_M is None else dot_R + self.bias_dot_M[rows]

    def _exit_products(self, loop: int, d_next_RD: Tensor, gain: Tensor | None) -> None:
        """Lay down what W_out multiplied in this loop and the gradient of the product."""
        running, staying = self.active[loop], self.active[loop + 1]
        leave, first = slice(staying, running), self.offsets[loop]
        weights = self.weights
        a_RF, d_update_RD = self.a_SF[self._rows(loop)], self.d_update_SD[self._rows(loop)]
        d_stay_RD = d_next_RD if gain is None else gain.to(d_next_RD.dtype) * d_next_RD
        if loop == 0 and weights.shared_M1 is not None:
            # The width pathway's shared part, σ·W_out a₁, was taken from loop 1's update.
            shared_R1 = weights.shared_M1[:staying].to(d_next_RD.dtype)
            d_stay_RD = torch.addcmul(d_stay_RD, shared_R1, self.d_output_MD[:staying])
        d_update_RD[:staying] = d_stay_RD
        d_update_RD[staying:] = self.d_exit_MD[leave]
        leaving = weights.take(leave)
        if self.d_b_out is not None:
            times_R1 = bias_times(leaving, loop).to(self.d_exit_MD.dtype)
            self.d_b_out += d_update_RD[:staying].sum(0)
            self.d_b_out += (times_R1 * self.d_exit_MD[leave]).sum(0)
        if loop == 0:
            self._add_width(weights.take(slice(staying)).routed(a_RF[:staying]))
        weight_R1 = leaving.kept_M1 if gain is None else leaving.kept_M1 * gain
        leaving_RF = self.a_SF[first + staying : first + running]
        if loop == 0:
            leaving.first_loop(leaving_RF, weight_R1, out=leaving_RF)
        else:
            leaving_RF *= weight_R1.to(leaving_RF.dtype)

    def _add_width(self, width_RF: Tensor | None) -> None:
        """Add λ·s·m ⊙ a₁ to what the last down-projection of each token multiplied."""
        if width_RF is None:
            return
        for loop in range(1, self.max_loops):
            exits = slice(self.active[loop + 1], self.active[loop])
            first = self.offsets[loop]
            self.a_SF[first + exits.start : first + exits.stop] += width_RF[exits]

    def _kept_gradient(self) -> Tensor:
        """Gradient of 1 − λ: ⟨G, U_ℓ̂⟩, less ⟨G, b⟩ where it also weighs the experts' bias."""
        dots_M = self.exit_dot_M.clone()
        for loop, total_MD in enumerate(self.saved.totals):
            exits = slice(self.active[loop + 2], self.active[loop + 1])
            dots_M[exits] += row_dots(self.d_output_MD[exits], total_MD[exits])
        if self.bias_dot_M is not None and self.weights.gates_MN is not None:
            dots_M -= self.bias_dot_M
        return dots_M[:, None].to(self.weights.kept_M1.dtype)

    def _probs_gradient(self) -> Tensor:
        """Gradient of p: (1 − λ) ⟨G, U_ℓ⟩ for every loop, [M, L]."""
        dots = [row_dots(self.d_output_MD, total_MD) for total_MD in self.saved.totals]
        last_M, rest = self.exit_dot_M.clone(), slice(self.active[-2], None)
        if self.active[-2] < len(last_M):
            if self.saved.projected:
                last_RF = self.saved.projected[-1]
            else:
                x_RD = self.layer.norm(self._state(self.max_loops - 1, rest))
                last_RF = self.layer.activate(self.layer.project(x_RD))
            last_R = self._with_bias(row_dots(self.v_MF[rest], last_RF), rest)
            gain = gain_of(self.weights, -1)
            last_M[rest] = last_R if gain is None else gain * last_R
        dots.append(dots[-1] + last_M if dots else last_M)
        dtype = self.weights.kept_M1.dtype
        return self.weights.kept_M1 * torch.stack(dots, dim=-1).to(dtype)

    def _width_gradients(self) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        """Gradients of λσ, ⟨v, a₁⟩, and of λs and the gates, which share ⟨v, a₁⟩ by expert."""
        weights, products_MF = self.weights, self.first_products_MF
        dtype, d_shared_M1 = weights.kept_M1.dtype, None
        if weights.shared_M1 is not None:
            d_shared_M = products_MF.sum(-1).to(self.wide)
            if weights.gates_MN is None:
                d_shared_M = self._with_bias(d_shared_M, slice(None))
            d_shared_M1 = d_shared_M[:, None].to(dtype)
        if weights.gates_MN is None or weights.routed_M1 is None or weights.slices is None:
            return d_shared_M1, None, None
        by_expert_MN = weights.slices.sum_neurons(products_MF).to(dtype)
        d_routed_M1 = (by_expert_MN * weights.gates_MN).sum(-1, keepdim=True)
        return d_shared_M1, d_routed_M1, weights.routed_M1 * by_expert_MN

    def _layer_gradients(self, wanted: Sequence[bool]) -> list[Tensor | None]:
        """Gradients of the layer's tensors, in its order, of those that are wanted."""
        biases = [
            d_rows.sum(0)
            for d_rows, bias in zip(self.d_projected, self.layer.b_proj, strict=True)
            if bias is not None
        ]
        found: list[Tensor | tuple[Tensor, Tensor]] = [
            *self.d_norm,
            *((d_rows.T, self.x_SD) for d_rows in self.d_projected),
            *biases,
            (self.d_update_SD.T, self.a_SF),
            *(() if self.d_b_out is None else (self.d_b_out,)),
        ]
        return [
            (part if isinstance(part, Tensor) else part[0] @ part[1]) if want else None
            for part, want in zip(found, wanted, strict=True)
        ]
