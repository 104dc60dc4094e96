"""What executors are given of a plan: what each token's activations and states are multiplied by.

With H_ℓ = H₀ + r·U_ℓ and m the gates spread over the neurons of their experts,

    (Y − H₀)/r = λ [σ U₁ + s·post(W_out(m ⊙ a₁))] + (1 − λ) Σ_ℓ p_ℓ U_ℓ

where a family without a post-norm (post = 1) lets one W_out serve all of it.

Legend: M tokens, F d_hidden, L max_loops, N num_experts.
"""

from dataclasses import dataclass, fields, replace

import torch
from torch import Tensor

from versatileffn.ffn.experts import ExpertSlices


@dataclass(frozen=True)
class TokenWeights:
    """The weights of M tokens. Source: Eq. 3, 6-8.

    Args:
        loop_count: ℓ̂, [M] int64.
        probs_ML: p of Eq. 10, one-hot where `hard`.
        kept_M1: 1 − λ, the depth pathway's share.
        shared_M1: λσ, the share of the full FFN in the width pathway; None where σ = 0.
        routed_M1: λs, the share of the virtual experts; None without them.
        gates_MN: g spread over the experts, zero where not selected; None without them.
        slices: the neurons of each expert; None without them.
        gains_L: γ; None means 1.
        shared: σ.
        hard: a token may stop after ℓ̂ loops.
        uniform: every token takes this many loops and λ = 0; None where that isn't known.
    """

    loop_count: Tensor
    probs_ML: Tensor
    kept_M1: Tensor
    shared_M1: Tensor | None = None
    routed_M1: Tensor | None = None
    gates_MN: Tensor | None = None
    slices: ExpertSlices | None = None
    gains_L: Tensor | None = None
    shared: float = 0.0
    hard: bool = True
    uniform: int | None = None

    @property
    def max_loops(self) -> int:
        """L."""
        return self.probs_ML.shape[-1]

    def routed_weights(self) -> Tensor | None:
        """λ·s·g spread over the experts: the width pathway as a weight on a₁."""
        if self.routed_M1 is None or self.gates_MN is None:
            return None
        return self.routed_M1 * self.gates_MN

    def width_bias(self) -> Tensor | None:
        """How often the width pathway adds W_out's bias where no post-norm follows, [M, 1].

        λ, whatever the gates are; without experts with the full FFN alone, λσ. None for never.
        """
        return self.shared_M1 if self.gates_MN is None else 1 - self.kept_M1

    def take(self, tokens: Tensor | slice) -> "TokenWeights":
        """The weights of some tokens, in the order given."""
        by_token = {
            field.name: getattr(self, field.name)[tokens]
            for field in fields(self)
            if field.name != "gains_L" and isinstance(getattr(self, field.name), Tensor)
        }
        return replace(self, **by_token)

    def depth_weights(self) -> Tensor:
        """(1 − λ)·q_j·γ_j with q_j = Σ_{ℓ≥j} p_ℓ, weighs each loop's update, [M, L]."""
        remaining_ML = self.probs_ML.flip(-1).cumsum(-1).flip(-1)
        weights_ML = self.kept_M1 * remaining_ML
        return weights_ML if self.gains_L is None else weights_ML * self.gains_L

    def first_loop(self, a_MF: Tensor, depth_M1: Tensor, out: Tensor | None = None) -> Tensor:
        """[depth + λσ + λ·s·m] ⊙ a₁, what loop 1 contributes where W_out serves all, [M, F].

        Weights are added up before they meet the activations: where they sum to one, a₁ passes
        through unchanged.

        Args:
            a_MF: a₁, hidden activations of loop 1.
            depth_M1: the depth pathway's weight of loop 1.
            out: where to put the result; may be `a_MF`. Only without gradients.
        """
        rest_M1 = depth_M1 if self.shared_M1 is None else depth_M1 + self.shared_M1
        routed_MN = self.routed_weights()
        if routed_MN is None or self.slices is None:
            return torch.mul(a_MF, rest_M1.to(a_MF.dtype), out=out)
        weights_MN = (rest_M1 + routed_MN).to(a_MF.dtype)
        return self.slices.scale_neurons(weights_MN, rest_M1.to(a_MF.dtype), a_MF, out)

    def routed(self, a_MF: Tensor) -> Tensor | None:
        """λ·s·m ⊙ a₁, the experts' part of it, [M, F]; None without experts."""
        return self._by_expert(self.routed_weights(), a_MF)

    def gated(self, a_MF: Tensor) -> Tensor | None:
        """m ⊙ a₁, what goes through a W_out of its own where a post-norm follows, [M, F]."""
        return self._by_expert(self.gates_MN, a_MF)

    def _by_expert(self, weights_MN: Tensor | None, a_MF: Tensor) -> Tensor | None:
        if weights_MN is None or self.slices is None:
            return None
        nothing_M1 = a_MF.new_zeros(len(a_MF), 1)
        return self.slices.scale_neurons(weights_MN.to(a_MF.dtype), nothing_M1, a_MF)
