"""The weights with which one down-projection serves both pathways.

Legend: M tokens, F d_hidden, N num_experts.
"""

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from versatileffn.ffn.experts import ExpertSlices, spread_gates
from versatileffn.ffn.plan import ReusePlan


@dataclass(frozen=True)
class Blend:
    """What each token's activations and states are multiplied by on their way to the output.

    Source: Eq. 3, 6–8. The virtual experts see the input of loop 1, so their hidden activations
    are slices of a₁, and the whole width pathway is a weight on them.

    Args:
        kept_M1: 1 − λ, the depth pathway's share.
        shared: σ.
        shared_M1: λσ, the share of the full FFN in the width pathway.
        routed_MN: λ·s·g spread over the experts; None without a width pathway.
        slices: the neurons of each expert; None without a width pathway.
    """

    kept_M1: Tensor
    shared: float
    shared_M1: Tensor
    routed_MN: Tensor | None
    slices: ExpertSlices | None

    @classmethod
    def of(cls, plan: ReusePlan) -> "Blend":
        """The weights of a flat plan."""
        lam_M1 = plan.lam[:, None]
        kept_M1 = 1 - lam_M1
        if plan.gates is None or plan.experts is None or plan.slices is None:
            return cls(kept_M1, 0.0, torch.zeros_like(lam_M1), None, None)
        routed_MN = spread_gates(plan.gates, plan.experts, plan.slices.num_experts)
        if plan.width_gain is not None:
            routed_MN = routed_MN * plan.width_gain
        shared_M1 = lam_M1 * plan.shared
        return cls(kept_M1, plan.shared, shared_M1, lam_M1 * routed_MN, plan.slices)

    def take(self, tokens: Tensor | slice) -> "Blend":
        """The weights of some tokens, in the order given."""
        return replace(
            self,
            kept_M1=self.kept_M1[tokens],
            shared_M1=self.shared_M1[tokens],
            routed_MN=None if self.routed_MN is None else self.routed_MN[tokens],
        )

    def first_loop(self, a_MF: Tensor, depth_M1: Tensor, out: Tensor | None = None) -> Tensor:
        """[depth + λσ + λ·s·m] ⊙ a₁, what loop 1 contributes to the output, [M, F].

        Weights are added up before they meet the activations: where they sum to one, a₁ passes
        through unchanged.

        Args:
            a_MF: a₁, hidden activations of loop 1.
            depth_M1: the depth pathway's weight of loop 1.
            out: where to put the result; may be `a_MF`. Only without gradients.
        """
        if self.routed_MN is None or self.slices is None:
            return torch.mul(a_MF, depth_M1.to(a_MF.dtype), out=out)
        rest_M1 = depth_M1 + self.shared_M1
        weights_MN = (rest_M1 + self.routed_MN).to(a_MF.dtype)
        return self.slices.scale_neurons(weights_MN, rest_M1.to(a_MF.dtype), a_MF, out)

    def routed(self, a_MF: Tensor) -> Tensor | None:
        """λ·s·m ⊙ a₁, the experts' part of it, [M, F]; None without a width pathway."""
        if self.routed_MN is None or self.slices is None:
            return None
        nothing_M1 = a_MF.new_zeros(len(a_MF), 1)
        return self.slices.scale_neurons(self.routed_MN.to(a_MF.dtype), nothing_M1, a_MF)
