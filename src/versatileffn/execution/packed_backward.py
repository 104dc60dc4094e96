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
from versatileffn.execution.layer import Layer


class PackedBackward:
    """One backward pass.

    Args:
        layer: as the forward pass read it.
        blend, gains_L, active: as the forward pass had them.
        start_MD: H₀.
        totals: U_1 … U_{L−1}, as the forward pass left them.
        saved: the projections, as the forward pass left them; empty to compute them again.
        d_output_MD: G.
    """

    def __init__(
        self,
        layer: Layer,
        blend: Blend,
        gains_L: Tensor | None,
        active: list[int],
        start_MD: Tensor,
        totals: Sequence[Tensor],
        saved: Sequence[Tensor],
        d_output_MD: Tensor,
    ) -> None:
        self.layer, self.blend, self.gains_L, self.active = layer, blend, gains_L, active
        self.start_MD, self.totals, self.saved = start_MD, totals, saved
        self.d_output_MD, self.max_loops = d_output_MD, len(active) - 1
        down_DF = layer.down
        self.wide = torch.promote_types(down_DF.dtype, torch.float32)
        self.d_exit_MD = d_output_MD.to(down_DF.dtype)
        self.v_MF = self.d_exit_MD @ down_DF

        self.offsets = [0, *accumulate(active)]
        (D, F), rows = down_DF.shape, sum(active)
        self.x_SD = down_DF.new_empty(rows, D)
        self.a_SF = down_DF.new_empty(rows, F)
        self.d_update_SD = down_DF.new_empty(rows, D)
        self.d_projected_SF = [down_DF.new_empty(rows, F) for _ in layer.proj]
        self.d_norm = [torch.zeros_like(weight) for weight in layer.norm.weights]
        self.d_gains = [self.v_MF.new_zeros((), dtype=self.wide)] * self.max_loops
        self.last_dot_M = self.v_MF.new_zeros(len(start_MD), dtype=self.wide)  # ⟨v, a_L⟩
        self.first_products_MF = self.v_MF[:0]  # v ⊙ a₁

    def chain(self) -> Tensor:
        """Go through the loops in reverse; the gradient of H₀, [M, D]."""
        d_state_RD = self.d_output_MD[:0]
        for loop in reversed(range(self.max_loops)):
            if self.active[loop]:
                d_state_RD = self._loop(loop, d_state_RD)
        lam_M1 = (1 - self.blend.kept_M1).to(d_state_RD.dtype)
        return torch.addcmul(d_state_RD, lam_M1, self.d_output_MD)

    def _loop(self, loop: int, d_next_RD: Tensor) -> Tensor:
        """From the gradient of H_ℓ for tokens that go on to that of H_{ℓ−1} for all that ran ℓ."""
        running, staying = self.active[loop], self.active[loop + 1]
        leave, here = slice(staying, running), self._rows(loop)
        gain = None if self.gains_L is None else self.gains_L[loop]
        x_RD, norm_backward = self.layer.norm.with_backward(self._state(loop, slice(running)))
        self.x_SD[here] = x_RD
        projected_RF = self._projected(loop, self.x_SD[here])
        a_RF = self.a_SF[here]
        phi = Activation(self.layer.mlp, projected_RF, a_RF, [d[here] for d in self.d_projected_SF])

        d_a_RF = torch.empty_like(a_RF)
        torch.mm(d_next_RD.to(a_RF.dtype), self.layer.down, out=d_a_RF[:staying])
        kept_R1 = self.blend.kept_M1[leave]
        torch.mul(self.v_MF[leave], kept_R1.to(a_RF.dtype), out=d_a_RF[leave])
        if gain is not None:
            self.d_gains[loop] = self._dot(d_a_RF, a_RF).sum()
            d_a_RF *= gain.to(d_a_RF.dtype)
        if loop == 0:
            d_a_RF += self.blend.first_loop(self.v_MF, torch.zeros_like(self.blend.kept_M1))
            self.first_products_MF = self.v_MF * a_RF
        if loop + 1 == self.max_loops:
            self.last_dot_M[:running] = self._dot(self.v_MF[:running], a_RF)
        phi.backward(d_a_RF)
        self._exit_products(loop, d_next_RD, gain)

        d_x_RD = self.d_projected_SF[0][here] @ self.layer.proj[0]
        for d_rows_SF, weight_FD in zip(self.d_projected_SF[1:], self.layer.proj[1:], strict=True):
            torch.addmm(d_x_RD, d_rows_SF[here], weight_FD, out=d_x_RD)  # torch counts no addmm_
        d_leaving_RD = kept_R1.to(d_next_RD.dtype) * self.d_output_MD[leave]
        d_state_RD, d_norm = norm_backward(d_x_RD)
        for total, part in zip(self.d_norm, d_norm, strict=True):
            total += part
        d_state_RD[:staying] += d_next_RD
        d_state_RD[leave] += d_leaving_RD
        return d_state_RD

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
            return self.layer.project(x_RD)
        step = len(self.layer.proj)
        return self.saved[loop * step : (loop + 1) * step]

    def _exit_products(self, loop: int, d_next_RD: Tensor, gain: Tensor | None) -> None:
        """Lay down what W_out multiplied in this loop and the gradient of the product."""
        running, staying = self.active[loop], self.active[loop + 1]
        leave, first = slice(staying, running), self.offsets[loop]
        a_RF, d_update_RD = self.a_SF[self._rows(loop)], self.d_update_SD[self._rows(loop)]
        d_stay_RD = d_next_RD if gain is None else gain.to(d_next_RD.dtype) * d_next_RD
        if loop == 0 and self.blend.shared:
            # The width pathway's shared part, σ·W_out a₁, was taken from loop 1's update.
            shared_R1 = self.blend.shared_M1[:staying].to(d_next_RD.dtype)
            d_stay_RD = torch.addcmul(d_stay_RD, shared_R1, self.d_output_MD[:staying])
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
        for loop in range(1, self.max_loops):
            exits = slice(self.active[loop + 1], self.active[loop])
            first = self.offsets[loop]
            self.a_SF[first + exits.start : first + exits.stop] += width_RF[exits]

    def _dot(self, a: Tensor, b: Tensor) -> Tensor:
        """Dot products of rows, [R]; summed in float32 and rounded to the factors' dtype."""
        return (a * b).sum(-1).to(self.wide)

    def depth_gradients(self, loop_count_M: Tensor) -> tuple[Tensor, Tensor]:
        """Gradients of p, (1 − λ) ⟨G, U_ℓ⟩, [M, L], and of 1 − λ, ⟨G, U_ℓ̂⟩, [M, 1].

        That of p is right up to a constant for each token. The forward pass ran all loops.
        """
        dots_ML = self._state_dots()
        kept_M1 = self.blend.kept_M1
        d_kept_M1 = dots_ML.gather(-1, loop_count_M[:, None] - 1)
        return kept_M1 * dots_ML.to(kept_M1.dtype), d_kept_M1.to(kept_M1.dtype)

    def width_gradients(self) -> tuple[Tensor | None, Tensor | None]:
        """Gradients of λσ, ⟨v, a₁⟩, [M, 1], and of λ·s·m, the same by expert, [M, N]."""
        dtype, products_MF = self.blend.kept_M1.dtype, self.first_products_MF
        if self.blend.routed_MN is None or self.blend.slices is None:
            return None, None
        d_routed_MN = self.blend.slices.sum_neurons(products_MF).to(dtype)
        d_shared_M1 = products_MF.sum(-1, keepdim=True).to(dtype) if self.blend.shared else None
        return d_shared_M1, d_routed_MN

    def gain_gradients(self) -> Tensor | None:
        """Gradient of γ, [L]."""
        return None if self.gains_L is None else torch.stack(self.d_gains).to(self.gains_L.dtype)

    def _state_dots(self) -> Tensor:
        """⟨G, U_ℓ⟩ of every loop, [M, L]."""
        dots = [self._dot(self.d_output_MD, total_MD) for total_MD in self.totals]
        last, rest = self.max_loops - 1, slice(self.active[-2], None)
        if self.active[-2] < len(self.start_MD):
            if self.saved:
                last_RF = self.saved[-1]
            else:
                x_RD = self.layer.norm(self._state(last, rest))
                last_RF = activate_in_place(self.layer.mlp, self.layer.project(x_RD))
            self.last_dot_M[rest] = self._dot(self.v_MF[rest], last_RF)
        last_M = self.last_dot_M if self.gains_L is None else self.gains_L[-1] * self.last_dot_M
        dots.append(dots[-1] + last_M if dots else last_M)
        return torch.stack(dots, dim=-1)

    def weight_gradients(self, wanted: Sequence[bool]) -> list[Tensor | None]:
        """Gradients of the norm's weights and the linears', of those that are wanted."""
        factors = [(d_rows_SF, self.x_SD) for d_rows_SF in self.d_projected_SF]
        factors.append((self.d_update_SD, self.a_SF))
        split = len(self.d_norm)
        d_norm = [d if want else None for d, want in zip(self.d_norm, wanted[:split], strict=True)]
        products = [
            d_rows_S.T @ rows_S if want else None
            for (d_rows_S, rows_S), want in zip(factors, wanted[split:], strict=True)
        ]
        return [*d_norm, *products]
