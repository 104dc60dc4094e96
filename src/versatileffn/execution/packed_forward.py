"""The forward pass of `packed_training`: all L loops, saving what the first ℓ̂ of each token need.

Every tensor here is in the order of loop counts, longest first.

Legend: M tokens, D d_model, F d_hidden, L max_loops, R tokens still running; U_ℓ = H_ℓ − H₀.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from versatileffn.execution.activation import activate_in_place
from versatileffn.execution.blend import Blend
from versatileffn.ffn.dense import FeedForward, Norm, activate, linears
from versatileffn.ffn.plan import ReusePlan


@dataclass(frozen=True)
class Weights:
    """The weights of a layer, those of the linears in the dtype of the matrix products.

    Args:
        norm: the norm's, as they are.
        linears: gate (if any) and up, each [F, D], and down, [D, F].
    """

    norm: Sequence[Tensor]
    linears: Sequence[Tensor]

    @classmethod
    def of(cls, norm: nn.Module, mlp: FeedForward, dtype: torch.dtype) -> "Weights":
        """The weights of a layer's modules."""
        cast = [linear.weight.to(dtype) for linear in linears(mlp)]
        return cls(list(norm.parameters()), cast)

    @property
    def proj(self) -> Sequence[Tensor]:
        """Gate and up, or up alone."""
        return self.linears[:-1]

    @property
    def down(self) -> Tensor:
        """W_out, [D, F]."""
        return self.linears[-1]

    def project(self, x_RD: Tensor) -> list[Tensor]:
        """W_proj x, each [R, F]."""
        x_RD = x_RD.to(self.down.dtype)
        return [F.linear(x_RD, weight) for weight in self.proj]


class PackedForward:
    """One forward pass.

    Args:
        norm, mlp: the layer; of the FFN only φ is used.
        weights: what to multiply with.
        plan: the plan, in the order of loop counts.
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
        norm: Norm,
        mlp: FeedForward,
        weights: Weights,
        plan: ReusePlan,
        active: list[int],
        all_loops: bool,
        keep_activations: bool,
    ) -> None:
        self.norm, self.mlp, self.weights, self.plan, self.active = norm, mlp, weights, plan, active
        self.all_loops, self.keep_activations = all_loops, keep_activations
        self.blend = Blend.of(plan)
        self.totals: list[Tensor] = []
        self.saved: list[Tensor] = []

    def __call__(self, start_MD: Tensor) -> Tensor:
        """Y, [M, D], from H₀."""
        down_DF, shared = self.weights.down, self.plan.shared
        exit_MF = down_DF.new_empty(len(start_MD), down_DF.shape[1])
        base_MD = torch.zeros_like(start_MD)
        width_RF: Tensor | None = None
        for loop in range(self.plan.max_loops):
            running, staying = self.active[loop], self.active[loop + 1]
            leave = slice(staying, running)
            last = loop + 1 == self.plan.max_loops
            total_MD = self.totals[-1] if self.totals else None
            rows = len(start_MD) if self.all_loops else running
            x_MD = self.norm(start_MD[:rows] if total_MD is None else start_MD[:rows] + total_MD)
            a_RF = self._activate(x_MD[:running], self.keep_activations)

            gain = None if self.plan.loop_gains is None else self.plan.loop_gains[loop]
            kept_R1 = self.blend.kept_M1[leave]
            weight_R1 = kept_R1 if gain is None else kept_R1 * gain
            if total_MD is None:
                width_RF = self.blend.take(slice(staying)).routed(a_RF[:staying])
                self.blend.take(leave).first_loop(a_RF[leave], weight_R1, out=exit_MF[leave])
            else:
                weight_R1 = weight_R1.to(a_RF.dtype)
                torch.mul(a_RF[leave], weight_R1, out=exit_MF[leave])
                if width_RF is not None:
                    exit_MF[leave] += width_RF[leave]
                kept_R1 = kept_R1.to(total_MD.dtype)
                first_RD = shared * self.totals[0][leave]
                base_MD[leave] = torch.lerp(first_RD, total_MD[leave], kept_R1)

            if self.all_loops and running < rows:
                rest_RF = self._activate(x_MD[running:], False)
                if last and self.keep_activations:
                    self.saved.append(rest_RF)
            if last:
                break
            rows = len(start_MD) if self.all_loops else staying  # that have a next state
            step_MD = down_DF.new_empty(rows, len(down_DF))
            ran = min(running, rows)
            torch.mm(a_RF[:ran], down_DF.T, out=step_MD[:ran])
            if ran < rows:
                torch.mm(rest_RF, down_DF.T, out=step_MD[ran:])
            step_MD = step_MD.to(start_MD.dtype)
            if gain is not None:
                step_MD = gain.to(step_MD.dtype) * step_MD
            self.totals.append(step_MD if total_MD is None else total_MD[:rows] + step_MD)
        return (start_MD + base_MD + F.linear(exit_MF, down_DF)).to(start_MD.dtype)

    def _activate(self, x_RD: Tensor, keep: bool) -> Tensor:
        """a = φ(W_proj x), [R, F]."""
        projected_RF = self.weights.project(x_RD)
        if not keep:
            return activate_in_place(self.mlp, projected_RF)
        self.saved += projected_RF
        return activate(self.mlp, *projected_RF)
