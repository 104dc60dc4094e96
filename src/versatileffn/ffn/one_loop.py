"""What a token is given that may loop once only: a weight for each neuron, and nothing to predict.

With ℓ̂ = 1 and γ₁ = 1 the layer is one product after another,

    (Y − H₀)/r = W_out([(1 − λ) + λσ + λ·s·m] ⊙ a₁)

where λ follows from L alone, so the loop predictor needn't be asked. W_out's bias is in both
pathways once: (1 − λ) + λ times.

Legend: M tokens (or any leading shape), F d_hidden, N num_experts, K top_k, L max_loops.
"""

from typing import NamedTuple

from torch import Tensor

from versatileffn.ffn.config import Fusion
from versatileffn.ffn.experts import ExpertSlices


class OneLoop(NamedTuple):
    """The weights of tokens that all loop once.

    Args:
        rest: (1 − λ) + λσ, the weight of neurons that no selected expert has.
        routed_MK: λ·s·g of the selected experts; None where none has a weight.
        experts_MK: which they are, int64.
        slices: the neurons of each expert.
    """

    rest: float = 1.0
    routed_MK: Tensor | None = None
    experts_MK: Tensor | None = None
    slices: ExpertSlices | None = None

    def weigh(self, a_MF: Tensor) -> Tensor:
        """[(1 − λ) + λσ + λ·s·m] ⊙ a₁, [M, F], in the memory of a₁."""
        if self.routed_MK is None or self.experts_MK is None or self.slices is None:
            return a_MF if self.rest == 1 else a_MF.mul_(self.rest)
        lead, num_experts = a_MF.shape[:-1], self.slices.num_experts
        weights_MN = self.routed_MK.new_full((*lead, num_experts), self.rest)
        weights_MN.scatter_add_(-1, self.experts_MK, self.routed_MK)
        if weights_MN.dtype != a_MF.dtype:
            weights_MN = weights_MN.to(a_MF.dtype)
        if not self.slices.tiles:
            rest_M1 = a_MF.new_full((*lead, 1), self.rest)
            return self.slices.scale_neurons(weights_MN, rest_M1, a_MF, out=a_MF)
        a_MF.view(*lead, num_experts, -1).mul_(weights_MN.unsqueeze(-1))
        return a_MF


_SHARES = {"average": 0.5, "width": 1.0, "depth": 0.0}


def share_of_one_loop(fusion: Fusion, max_loops: int) -> float:
    """λ of a token that loops once: `width_share` at p₁ = 1. Source: Eq. 13."""
    return (max_loops - 1) / max_loops if fusion == "difficulty" else _SHARES[fusion]
