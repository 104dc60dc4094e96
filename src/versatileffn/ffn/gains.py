"""Learned gains: scalars with which a reused FFN starts exactly at the dense one.

Source: ours, docs/algebra.md. They belong to the layer: whoever decides, the start is exact.
"""

import torch
from torch import Tensor, nn

from versatileffn.ffn.plan import ReusePlan


class ReuseGains(nn.Module):
    """γ₂ … γ_L and s, learned from 0, beside γ₁ = σ = 1: at the start only loop 1 has an effect.

    Args:
        loops: L; L − 1 gains are learned.
        width: there is a width pathway, so that s is learned.

    Attributes:
        loop_gains: γ₂ … γ_L, [L − 1]; None for one loop.
        width_gain: s, [1] (FSDP2 shards no scalars); None without a width pathway.
    """

    def __init__(self, loops: int, width: bool) -> None:
        super().__init__()
        self.loop_gains = nn.Parameter(torch.zeros(loops - 1)) if loops > 1 else None
        self.width_gain = nn.Parameter(torch.zeros(1)) if width else None

    @torch.no_grad()
    def reset_parameters(self, std: float = 0.02) -> None:
        """Set all gains to 0, whatever the scale of other new weights."""
        for gain in self.parameters():
            nn.init.zeros_(gain)

    def forward(self, plan: ReusePlan) -> ReusePlan:
        """The same decisions, carried out with these gains."""
        return plan.with_gains(
            None if self.loop_gains is None else with_first_gain(self.loop_gains), self.width_gain
        )


def with_first_gain(learned_gains: Tensor) -> Tensor:
    """Put the fixed γ₁ = 1 before the learned γ₂ … γ_L: [L − 1] -> [L]."""
    return torch.cat([learned_gains.new_ones(1), learned_gains])
