"""Weights that differ by loop: a low-rank residual for each loop after the first.

Source: LORS (arXiv 2403.04303), a low-rank residual on weights that layers share; here loops do.

Legend: D d_model, F d_hidden, L loops, R rank.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn


class LowRankLoops(nn.Module):
    """W + B_ℓ A_ℓ in loop ℓ > 1. B starts at 0, so that at first all loops share their weights.

    Args:
        sizes: (in, out) of each linear map of the FFN, W_out last.
        loops: L.
        rank: R.

    Attributes:
        reduce: A, one [L − 1, R, in] for each linear map.
        expand: B, one [L − 1, out, R] for each linear map.
    """

    def __init__(self, sizes: Sequence[tuple[int, int]], loops: int, rank: int) -> None:
        super().__init__()
        self.reduce = nn.ParameterList(torch.empty(loops - 1, rank, i) for i, _ in sizes)
        self.expand = nn.ParameterList(torch.empty(loops - 1, o, rank) for _, o in sizes)
        self.reset_parameters()

    @torch.no_grad()
    def reset_parameters(self, std: float = 0.02) -> None:
        """Draw A from N(0, std²) and set B to 0."""
        for a, b in zip(self.reduce, self.expand, strict=True):
            nn.init.normal_(a, std=std)
            nn.init.zeros_(b)

    def residual(self, loop: int, index: int, x: Tensor) -> Tensor | None:
        """B_ℓ A_ℓ x of one linear map, [..., in] -> [..., out]; None in the first loop."""
        if loop == 0:
            return None
        a, b = self.reduce[index][loop - 1], self.expand[index][loop - 1]
        return nn.functional.linear(nn.functional.linear(x, a), b)
