"""What the updates of a reused FFN are multiplied by: learned gains, or one scale for all loops.

With learned gains it can start exactly at the dense one. Source: ours, docs/algebra.md. They belong
to the layer: whoever decides, the start is exact.
"""

from dataclasses import replace

import torch
from torch import Tensor, nn

from versatileffn.ffn.plan import ReusePlan


class LearnedGains(nn.Module):
    """γ₂ … γ_L and s, learned, beside γ₁ = σ = 1: from 0, only loop 1 has an effect at the start.

    Args:
        loops: L; L − 1 gains are learned.
        width: there is a width pathway, so that s is learned.
        start: of all of them. At 0 further loops give the FFN's weights no gradient at first.

    Attributes:
        loop_gains: γ₂ … γ_L, [L − 1]; None for one loop.
        width_gain: s, [1] (FSDP2 shards no scalars); None without a width pathway.
    """

    def __init__(self, loops: int, width: bool, start: float = 0.0) -> None:
        super().__init__()
        self.start = start
        self.loop_gains = nn.Parameter(torch.empty(loops - 1)) if loops > 1 else None
        self.width_gain = nn.Parameter(torch.empty(1)) if width else None
        self.reset_parameters()

    @torch.no_grad()
    def reset_parameters(self, std: float = 0.02) -> None:
        """Set all gains to their start, whatever the scale of other new weights."""
        for gain in self.parameters():
            nn.init.constant_(gain, self.start)

    def forward(self, plan: ReusePlan) -> ReusePlan:
        """The same decisions, carried out with these gains."""
        return plan.with_gains(
            None if self.loop_gains is None else with_first_gain(self.loop_gains), self.width_gain
        )


def with_first_gain(learned_gains: Tensor) -> Tensor:
    """Put the fixed γ₁ = 1 before the learned γ₂ … γ_L: [L − 1] -> [L]."""
    return torch.cat([learned_gains.new_ones(1), learned_gains])


def with_scale(plan: ReusePlan, scale: float) -> ReusePlan:
    """The same decisions, each loop adding γ = `scale` times the FFN. Width stays as it is.

    Source: with 1/L, the residual scale of looped networks; here it keeps L loops at the size of
    one.
    """
    gains = plan.loop_gains
    if gains is None:
        gains = plan.loop_probs.new_ones(plan.max_loops)
    return replace(plan, loop_gains=gains * scale)
