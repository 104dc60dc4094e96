"""The forward pass of `packed_training`: all L loops, saving what the first ℓ̂ of each token need.

Every tensor here is in the order of loop counts, longest first.

Legend: M tokens, D d_model, F d_hidden, L max_loops, R tokens still running; U_ℓ = H_ℓ − H₀.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from versatileffn.execution.activation import activate_in_place
from versatileffn.execution.blend import Blend
from versatileffn.execution.layer import Layer
from versatileffn.ffn.dense import activate


class PackedForward:
    """One forward pass.

    Args:
        layer: what to multiply with.
        blend: what each token's activations are weighted with.
        gains_L: γ, or None for 1.
        active: tokens that run loop 1, 2, … L, then 0.
        all_loops: run every loop for every token, as the gradients of p and λ need.
        keep_activations: save projections.

    Attributes:
        totals: after the call, U_1 … U_{L−1}, of all tokens or (without `all_loops`) of those
            still running.
        saved: after the call, with `keep_activations`: for each loop the projections of the
            tokens that run it, then with `all_loops` a_L of the tokens that don't run loop L.
    """

    def __init__(
        self,
        layer: Layer,
        blend: Blend,
        gains_L: Tensor | None,
        active: list[int],
        all_loops: bool,
        keep_activations: bool,
    ) -> None:
        self.layer, self.blend, self.gains_L, self.active = layer, blend, gains_L, active
        self.all_loops, self.keep_activations = all_loops, keep_activations
        self.totals: list[Tensor] = []
        self.saved: list[Tensor] = []

    def __call__(self, start_MD: Tensor) -> Tensor:
        """Y, [M, D], from H₀."""
        down_DF, tokens = self.layer.down, len(start_MD)
        exit_MF = down_DF.new_empty(tokens, down_DF.shape[1])
        base_MD = torch.zeros_like(start_MD)
        width_RF: Tensor | None = None
        first_MD: Tensor | None = None  # W_out a₁, before its gain
        for loop, running in enumerate(self.active[:-1]):
            staying = self.active[loop + 1]
            leave = slice(staying, running)
            total_MD = self.totals[-1] if self.totals else None
            rows = tokens if self.all_loops else running
            x_MD = self.layer.norm(
                start_MD[:rows] if total_MD is None else start_MD[:rows] + total_MD
            )
            a_RF = self._activate(x_MD[:running], self.keep_activations)
            rest_RF = self._activate(x_MD[running:], False) if running < rows else None

            gain = None if self.gains_L is None else self.gains_L[loop]
            kept_R1 = self.blend.kept_M1[leave]
            weight_R1 = kept_R1 if gain is None else kept_R1 * gain
            if total_MD is None or first_MD is None:
                width_RF = self.blend.take(slice(staying)).routed(a_RF[:staying])
                self.blend.take(leave).first_loop(a_RF[leave], weight_R1, out=exit_MF[leave])
            else:
                torch.mul(a_RF[leave], weight_R1.to(a_RF.dtype), out=exit_MF[leave])
                if width_RF is not None:
                    exit_MF[leave] += width_RF[leave]
                first_RD = self.blend.shared * first_MD[leave]
                base_MD[leave] = torch.lerp(first_RD, total_MD[leave], kept_R1.to(total_MD.dtype))
            if loop + 2 == len(self.active):
                if rest_RF is not None and self.keep_activations:
                    self.saved.append(rest_RF)
                break
            step_MD = self._step(a_RF, rest_RF, tokens if self.all_loops else staying)
            step_MD = step_MD.to(start_MD.dtype)
            first_MD = step_MD if first_MD is None else first_MD
            if gain is not None:
                step_MD = gain.to(step_MD.dtype) * step_MD
            self.totals.append(step_MD if total_MD is None else total_MD[: len(step_MD)] + step_MD)
        return (start_MD + base_MD + F.linear(exit_MF, down_DF)).to(start_MD.dtype)

    def _activate(self, x_RD: Tensor, keep: bool) -> Tensor:
        """a = φ(W_proj x), [R, F]."""
        projected_RF = self.layer.project(x_RD)
        if not keep:
            return activate_in_place(self.layer.mlp, projected_RF)
        self.saved += projected_RF
        return activate(self.layer.mlp, *projected_RF)

    def _step(self, a_RF: Tensor, rest_RF: Tensor | None, rows: int) -> Tensor:
        """W_out a for the tokens that have a next state, [rows, D]."""
        down_DF = self.layer.down
        if rest_RF is None:
            return F.linear(a_RF[:rows], down_DF)
        step_MD = down_DF.new_empty(rows, len(down_DF))
        torch.mm(a_RF, down_DF.T, out=step_MD[: len(a_RF)])
        torch.mm(rest_RF, down_DF.T, out=step_MD[len(a_RF) :])
        return step_MD
