"""Learned gains: scalars with which a reused FFN starts exactly at the dense one."""

import torch
from torch import Tensor, nn


class LoopGains(nn.Module):
    """γ₂ … γ_k, learned from 0, with γ₁ fixed to 1: at the start every loop but the first is idle.

    Source: ours, docs/algebra.md.

    Args:
        num_loops: k; k − 1 gains are learned.
    """

    def __init__(self, num_loops: int) -> None:
        super().__init__()
        self.loop_gains = nn.Parameter(torch.zeros(num_loops - 1))

    def forward(self) -> Tensor:
        """γ₁ … γ_k, [k]."""
        return with_first_gain(self.loop_gains)


def with_first_gain(learned_gains: Tensor) -> Tensor:
    """Put the fixed γ₁ = 1 before the learned γ₂ … γ_k: [k − 1] -> [k]."""
    return torch.cat([learned_gains.new_ones(1), learned_gains])
