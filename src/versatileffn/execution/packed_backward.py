"""The backward pass of `packed_training`: loops in reverse, over the tokens that ran them.

Every tensor here is in the order of loop counts, longest first. With G = ∂Y and the gradient
d_H_ℓ of a token's state, Y = λ·Y_width + (1 − λ)·H_ℓ̂ gives

    d_H_ℓ̂ = (1 − λ) G        d_H_{ℓ−1} = d_H_ℓ + (∂ γ_ℓ W_out a_ℓ / ∂ H_{ℓ−1})ᵀ d_H_ℓ

Legend: M tokens, D d_model, F d_hidden, L max_loops, N num_experts, K top_k, R tokens still
running; U_ℓ = H_ℓ − H₀; `d_x` is the gradient of the loss in x.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from versatileffn.execution.blend import blend_first_loop
from versatileffn.ffn.dense import FeedForward, activate, linears
from versatileffn.ffn.plan import ReusePlan


@dataclass
class Layer:
    """The modules of a layer."""

    norm: nn.Module
    mlp: FeedForward


@dataclass
class Loop:
    """What one loop leaves for the backward pass, for the R tokens that run it.

    Args:
        state_RD: H_{ℓ−1}.
        x_RD: norm(H_{ℓ−1}).
        projected_RF: W_proj x before the activation: gate and up, or up alone.
    """

    state_RD: Tensor
    x_RD: Tensor
    projected_RF: tuple[Tensor, ...]


class PackedBackward:
    """One backward pass.

    Args:
        layer: its modules.
        plan: the plan, in the order of loop counts.
        active: tokens that run loop 1, 2, … L, then 0.
        weights: of the norm, then of the linears, as the forward pass used them.
        loops: what each loop left.
        exit_MF: what each token's last down-projection multiplied.
        d_output_MD: G.
    """

    def __init__(
        self,
        layer: Layer,
        plan: ReusePlan,
        active: list[int],
        weights: Sequence[Tensor],
        loops: list[Loop],
        exit_MF: Tensor,
        d_output_MD: Tensor,
    ) -> None:
        self.layer, self.plan, self.active, self.loops = layer, plan, active, loops
        self.kept_M1 = 1 - plan.lam[:, None]
        self.wide = torch.promote_types(exit_MF.dtype, torch.float32)
        num_linears = len(linears(layer.mlp))
        self.norm_weights = weights[:-num_linears]
        self.weight_dtypes = [weight.dtype for weight in weights]
        *self.proj_weights, self.down_DF = (w.to(exit_MF.dtype) for w in weights[-num_linears:])
        self.d_output_MD = d_output_MD
        self.v_MF = d_output_MD.to(exit_MF.dtype) @ self.down_DF

        self.d_norm = [torch.zeros_like(weight) for weight in self.norm_weights]
        self.d_gains = [torch.zeros((), dtype=self.wide, device=exit_MF.device)] * plan.max_loops
        self.exit_dot_M = plan.lam.new_zeros(plan.lam.shape, dtype=self.wide)
        self.d_linears: list[Tensor | None] = [None] * num_linears
        self._add_product(-1, d_output_MD.to(exit_MF.dtype), exit_MF)

    def chain(self) -> Tensor:
        """Go through the loops in reverse; the gradient of H₀, [M, D]."""
        d_state_RD = self.d_output_MD[:0]
        for index in reversed(range(self.plan.max_loops)):
            d_state_RD = self._loop(index, d_state_RD)
        return d_state_RD + self.plan.lam[:, None].to(d_state_RD.dtype) * self.d_output_MD

    def _loop(self, index: int, d_next_RD: Tensor) -> Tensor:
        """From the gradient of H_ℓ for tokens that go on to that of H_{ℓ−1} for all that ran ℓ."""
        loop, running, staying = self.loops[index], self.active[index], self.active[index + 1]
        leave = slice(staying, running)
        gains = self.plan.loop_gains
        kept_R1 = self.kept_M1[leave]
        with torch.enable_grad():
            leaves = tuple(p.detach().requires_grad_() for p in loop.projected_RF)
            a_RF = activate(self.layer.mlp, *leaves)
        v_RF = self.v_MF[leave]
        back_RF = torch.cat([
            d_next_RD.to(v_RF.dtype) @ self.down_DF, kept_R1.to(v_RF.dtype) * v_RF
        ])  # fmt: skip
        values_RF = a_RF.detach()
        self.d_gains[index] = (back_RF * values_RF).sum(dtype=self.wide)
        self._keep_exit_dot(index, leave, values_RF[leave])

        d_a_RF = back_RF if gains is None else gains[index].to(back_RF.dtype) * back_RF
        if index == 0:
            nothing_M1 = torch.zeros_like(self.kept_M1)
            d_a_RF = d_a_RF + blend_first_loop(self.plan, self.v_MF, nothing_M1)
        d_projected_RF = torch.autograd.grad(a_RF, leaves, d_a_RF)
        d_x_RD = sum(
            (d @ w for d, w in zip(d_projected_RF[1:], self.proj_weights[1:], strict=True)),
            start=d_projected_RF[0] @ self.proj_weights[0],
        )
        for position, d_rows_RF in enumerate(d_projected_RF):
            self._add_product(position, d_rows_RF, loop.x_RD.to(d_x_RD.dtype))
        d_update_RD = d_next_RD
        if index == 0 and self.plan.shared:
            # The width pathway's shared part, σ·W_out a₁, was taken from loop 1's update.
            lam_R1 = self.plan.lam[:staying, None].to(d_next_RD.dtype)
            d_update_RD = d_next_RD + self.plan.shared * lam_R1 * self.d_output_MD[:staying]
        stayed_RF = values_RF[:staying]
        if gains is not None:
            stayed_RF = gains[index].to(stayed_RF.dtype) * stayed_RF
        self._add_product(-1, d_update_RD.to(stayed_RF.dtype), stayed_RF)
        d_leaving_RD = kept_R1.to(d_next_RD.dtype) * self.d_output_MD[leave]
        return torch.cat([d_next_RD, d_leaving_RD]) + self._through_norm(loop, d_x_RD)

    def _through_norm(self, loop: Loop, d_x_RD: Tensor) -> Tensor:
        with torch.enable_grad():
            state_RD = loop.state_RD.detach().requires_grad_()
            x_RD = self.layer.norm(state_RD)
        trained = [weight for weight in self.layer.norm.parameters() if weight.requires_grad]
        inputs = [state_RD, *trained]
        d_state_RD, *d_norm = torch.autograd.grad(x_RD, inputs, d_x_RD.to(x_RD.dtype))
        parts = iter(d_norm)
        for index, weight in enumerate(self.layer.norm.parameters()):
            if weight.requires_grad:
                self.d_norm[index] = self.d_norm[index] + next(parts)
        return d_state_RD

    def _keep_exit_dot(self, index: int, leave: slice, a_RF: Tensor) -> None:
        """⟨G, U_ℓ̂⟩ = ⟨G, U_{ℓ̂−1}⟩ + γ ⟨v, a_ℓ̂⟩ for tokens whose last loop this is."""
        gains = self.plan.loop_gains
        last_R = (self.v_MF[leave] * a_RF).sum(-1, dtype=self.wide)
        before_RD = self.loops[index].state_RD[leave] - self.loops[0].state_RD[leave]
        before_R = (self.d_output_MD[leave] * before_RD).sum(-1, dtype=self.wide)
        self.exit_dot_M[leave] = before_R + (last_R if gains is None else gains[index] * last_R)

    def loop_probs(self, totals_MD: Sequence[Tensor], last_MF: Tensor) -> Tensor:
        """(1 − λ) ⟨G, U_ℓ⟩, the gradient of p up to a constant for each token, [M, L].

        Args:
            totals_MD: U_1 … U_{L−1} of all tokens.
            last_MF: a_L of the tokens that don't run loop L.
        """
        gains = self.plan.loop_gains
        dots_M = [(self.d_output_MD * u_MD).sum(-1, dtype=self.wide) for u_MD in totals_MD]
        ran_RF = activate(self.layer.mlp, *self.loops[-1].projected_RF)
        final_M = torch.cat([
            (self.v_MF[: len(ran_RF)] * ran_RF).sum(-1, dtype=self.wide),
            (self.v_MF[len(ran_RF) :] * last_MF).sum(-1, dtype=self.wide),
        ])  # fmt: skip
        final_M = final_M if gains is None else gains[-1] * final_M
        dots_M.append(final_M + dots_M[-1] if dots_M else final_M)
        return (self.kept_M1 * torch.stack(dots_M, dim=-1)).to(self.plan.loop_probs.dtype)

    def width(self) -> tuple[Tensor, Tensor | None, Tensor | None]:
        """Gradients of λ [M], of the gates [M, K] and of the gain s (a scalar)."""
        plan = self.plan
        if plan.gates is None or plan.experts is None or plan.slices is None:
            return -self.exit_dot_M.to(plan.lam.dtype), None, None
        first_MF = activate(self.layer.mlp, *self.loops[0].projected_RF)
        products_MF = (self.v_MF * first_MF).to(self.wide)
        by_expert_MK = plan.slices.sum_neurons(products_MF).gather(-1, plan.experts)
        routed_M = (plan.gates * by_expert_MK).sum(-1)
        gain = 1.0 if plan.width_gain is None else plan.width_gain
        d_lam_M = plan.shared * products_MF.sum(-1) + gain * routed_M - self.exit_dot_M
        d_gates_MK = plan.lam[:, None] * gain * by_expert_MK
        d_width_gain = None
        if plan.width_gain is not None:
            d_width_gain = (plan.lam * routed_M).sum().to(plan.width_gain.dtype)
        return d_lam_M.to(plan.lam.dtype), d_gates_MK.to(plan.gates.dtype), d_width_gain

    def loop_gains(self) -> Tensor | None:
        """Gradient of γ, [L]."""
        gains = self.plan.loop_gains
        return None if gains is None else torch.stack(self.d_gains).to(gains.dtype)

    def _add_product(self, position: int, d_rows: Tensor, rows: Tensor) -> None:
        """Add d_rowsᵀ rows to a linear's gradient, in at least float32."""
        if len(rows) == 0:
            return
        product, total = (d_rows.T @ rows).to(self.wide), self.d_linears[position]
        self.d_linears[position] = product if total is None else total.add_(product)

    def weights(self) -> list[Tensor | None]:
        """Gradients of the norm's weights and the linears'."""
        grads = [*self.d_norm, *self.d_linears]
        return [
            None if grad is None else grad.to(dtype)
            for grad, dtype in zip(grads, self.weight_dtypes, strict=True)
        ]
