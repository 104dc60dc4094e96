"""Each token runs its own ℓ̂ loops and stops: Σ ℓ̂ FFN applications, no more.

A token's last down-projection carries the blend of its last loop and of the virtual experts, and
the shared part of the width pathway is σ·U₁, which loop 1 already computed:

    (Y − H₀)/r = λσU₁ + (1 − λ) U_{ℓ̂−1} + W_out[ (1 − λ) γ_ℓ̂ a_ℓ̂ + λ s·m ⊙ a₁ ]        for ℓ̂ > 1

One forward pass serves inference, which keeps nothing, and training (`packed_training.py`), which
keeps states or also activations, and may have to run every loop for every token.

Legend: M tokens, D d_model, F d_hidden, L max_loops, R tokens still running; H_ℓ = H₀ + r·U_ℓ.
"""

from functools import partial

import torch
from torch import Tensor

from versatileffn.errors import PlanError
from versatileffn.execution.layer import CalledLayer, Layer
from versatileffn.execution.order import Count, run_in_order
from versatileffn.ffn.token_weights import TokenWeights
from versatileffn.ffn.view import FFNView


def run_packed(hidden_MD: Tensor, view: FFNView, weights: TokenWeights) -> Tensor:
    """Carry out a hard plan without gradients. Source: Algorithm 2.

    Args:
        hidden_MD: H, hidden states after attention, [M, D].
        view: an FFN that merges; its linears are called.
        weights: of the same M tokens.

    Returns:
        (Y − H)/r, [M, D].

    Raises:
        PlanError: the plan is soft, so no token may stop early.
    """
    check_hard(weights)
    return run_in_order(hidden_MD, weights, partial(PackedForward, CalledLayer(view)))


def check_hard(weights: TokenWeights) -> None:
    """Refuse what lets no token stop.

    Raises:
        PlanError: the plan is soft.
    """
    if not weights.hard:
        raise PlanError("a soft plan mixes all loops: it needs the execution 'masked'")


class PackedForward:
    """One forward pass over tokens that are in order.

    Args:
        layer: what to multiply with.
        weights: of the tokens.
        count: tokens that run loop 1, 2, … L, then 0.
        keep: what to keep for a backward pass: `nothing`, `states` or `activations`.
        all_loops: run every loop for every token, as the gradient of p needs.

    Attributes:
        totals: after the call, where states are kept, U_1 … U_{L−1}, of all tokens or (without
            `all_loops`) of those still running.
        projected: after the call, where activations are kept, for each loop what W_proj gave the
            tokens that run it, then with `all_loops` a_L of the tokens that don't run loop L.
    """

    def __init__(
        self,
        layer: Layer,
        weights: TokenWeights,
        count: Count,
        keep: str = "nothing",
        all_loops: bool = False,
    ) -> None:
        self.layer, self.weights, self.count = layer, weights, count
        self.keep, self.all_loops = keep, all_loops
        self.totals: list[Tensor] = []
        self.projected: list[Tensor] = []
        # Where nothing of a loop is needed again, one product serves who leaves and who stays.
        self.together = keep == "nothing" and not all_loops
        self.update_MD: Tensor | None = None  # of that product, each token's last row
        self.exit_MF: Tensor | None = None  # otherwise: what each last down-projection multiplies
        self.base_MD: Tensor | None = None  # λσU₁ + (1 − λ) U_{ℓ̂−1}
        self.width_RF: Tensor | None = None  # λ·s·m ⊙ a₁ of the tokens still running
        self.first_MD: Tensor | None = None  # W_out a₁, before its gain
        self.bias_times_M1: Tensor | None = None  # how often the plan wants W_out's bias at the end

    def __call__(self, start_MD: Tensor) -> Tensor:
        """(Y − H₀)/r, [M, D], from H₀."""
        tokens = running = len(start_MD)
        total_MD: Tensor | None = None
        for loop in range(self.weights.max_loops):
            rows = tokens if self.all_loops else running
            state_MD = state(start_MD[:rows], total_MD, self.layer.scale)
            x_MD = self.layer.norm(state_MD)
            a_RF = self._activate(x_MD[:running], self.keep == "activations")
            rest_RF = self._activate(x_MD[running:], False) if running < rows else None
            staying = self.count()[loop + 1]
            self._leave(loop, a_RF, slice(staying, running), total_MD, tokens)
            if self.together:
                update_RD = self.layer.down(a_RF)
                self._keep_last(update_RD, slice(staying, running), tokens)
            if loop + 1 == self.weights.max_loops or not (staying or self.all_loops):
                if rest_RF is not None and self.keep == "activations":
                    self.projected.append(rest_RF)
                break
            if self.together:
                step_MD = update_RD[:staying]
            else:
                step_MD = self._step(a_RF, rest_RF, tokens if self.all_loops else staying)
            step_MD = step_MD.to(start_MD.dtype)
            self.first_MD = step_MD if self.first_MD is None else self.first_MD
            gain = gain_of(self.weights, loop)
            if gain is not None:
                step_MD = gain.to(step_MD.dtype) * step_MD
            # A total may be what a hook has kept of W_out's output: it isn't written to.
            total_MD = step_MD if total_MD is None else total_MD[: len(step_MD)] + step_MD
            if self.keep != "nothing":
                self.totals.append(total_MD)
            running = staying
        return self._finish().to(start_MD.dtype)

    def _activate(self, x_RD: Tensor, keep: bool) -> Tensor:
        """a = φ(W_proj x), [R, F]."""
        projected = self.layer.project(x_RD)
        if not keep:
            return self.layer.activate(projected)
        self.projected += projected
        return self.layer.phi(projected)

    def _keep_last(self, update_RD: Tensor, leave: slice, tokens: int) -> None:
        """Keep the last update of tokens that leave."""
        if leave == slice(0, tokens):
            self.update_MD = update_RD
            return
        if self.update_MD is None:
            self.update_MD = update_RD.new_empty(tokens, update_RD.shape[1])
        self.update_MD[leave] = update_RD[leave]

    def _step(self, a_RF: Tensor, rest_RF: Tensor | None, rows: int) -> Tensor:
        """W_out a for the tokens that have a next state, [rows, D]."""
        if rest_RF is None:
            return self.layer.down(a_RF[:rows])
        return torch.cat([self.layer.down(a_RF), self.layer.down(rest_RF)])

    def _leave(
        self, loop: int, a_RF: Tensor, leave: slice, total_MD: Tensor | None, tokens: int
    ) -> None:
        """Lay down what the last down-projection of tokens that leave multiplies and adds to."""
        if loop == 0 and leave.start:
            self.width_RF = self.weights.take(slice(leave.start)).routed(a_RF[: leave.start])
        if leave.start == leave.stop and tokens:
            return
        everybody = leave == slice(0, tokens)
        if self.exit_MF is None and not self.together:
            self.exit_MF = a_RF.new_empty(tokens, a_RF.shape[1])
        weights = self.weights if everybody else self.weights.take(leave)
        exit_RF = a_RF[leave] if self.exit_MF is None else self.exit_MF[leave]
        gain = gain_of(weights, loop)
        depth_R1 = weights.kept_M1 if gain is None else weights.kept_M1 * gain
        if loop == 0:
            weights.first_loop(a_RF[leave], depth_R1, out=exit_RF)
        elif self.width_RF is None:
            torch.mul(a_RF[leave], depth_R1.to(a_RF.dtype), out=exit_RF)
        else:
            depth_R1 = depth_R1.to(a_RF.dtype)
            torch.addcmul(self.width_RF[leave], a_RF[leave], depth_R1, out=exit_RF)
        if self.layer.b_out is not None:
            times_R1 = bias_times(weights, loop)
            if self.bias_times_M1 is None:
                self.bias_times_M1 = times_R1.new_empty(tokens, 1)
            self.bias_times_M1[leave] = times_R1
        if total_MD is None or self.first_MD is None:
            return
        kept_R1 = weights.kept_M1.to(total_MD.dtype)
        base_RD = before_last(self.first_MD[leave], total_MD[leave], kept_R1, weights.shared)
        if everybody:
            self.base_MD = base_RD
            return
        if self.base_MD is None:
            self.base_MD = total_MD.new_zeros(tokens, total_MD.shape[1])
        self.base_MD[leave] = base_RD

    def _finish(self) -> Tensor:
        """Every token's last down-projection, [M, D]."""
        update_MD = self.update_MD
        if update_MD is None:
            assert self.exit_MF is not None
            update_MD = self.layer.down(self.exit_MF)
        if self.layer.b_out is not None and self.bias_times_M1 is not None:
            # It was added once.
            update_MD = update_MD + (self.bias_times_M1 - 1).to(update_MD.dtype) * self.layer.b_out
        return update_MD if self.base_MD is None else self.base_MD + update_MD


def state(start_RD: Tensor, total_RD: Tensor | None, scale: float) -> Tensor:
    """H_ℓ = H₀ + r·U_ℓ, [R, D]."""
    if total_RD is None:
        return start_RD
    return torch.add(start_RD, total_RD, alpha=scale) if scale != 1 else start_RD + total_RD


def before_last(first_RD: Tensor, total_RD: Tensor, kept_R1: Tensor, shared: float) -> Tensor:
    """λσU₁ + (1 − λ) U_ℓ, [R, D]; exactly U₁ where σ = 1 and U_ℓ = U₁."""
    if not shared:
        return total_RD * kept_R1
    return torch.lerp(shared * first_RD, total_RD, kept_R1)


def gain_of(weights: TokenWeights, loop: int) -> Tensor | None:
    """γ of a loop, which counts from 0; None for 1."""
    return None if weights.gains_L is None else weights.gains_L[loop]


def bias_times(weights: TokenWeights, loop: int) -> Tensor:
    """How often the plan wants W_out's bias beside what the U before the last loop hold, [R, 1].

    (1 − λ)γ in the last loop and what the width pathway has, whose shared part loop 1 held.
    """
    gain, width_R1 = gain_of(weights, loop), weights.width_bias()
    times_R1 = weights.kept_M1 if gain is None else weights.kept_M1 * gain
    if width_R1 is None:
        return times_R1
    if loop and weights.shared_M1 is not None:
        width_R1 = width_R1 - weights.shared_M1
    return times_R1 + width_R1
