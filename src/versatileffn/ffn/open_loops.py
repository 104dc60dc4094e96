"""Loops that are closed for a while: training may open them one after the other.

Legend: M tokens (or any leading shape), L max_loops.
"""

import torch
from torch import Tensor


class OpenLoops:
    """Mixin of a controller whose tokens choose among the first `open_loops` of L loops only.

    Like τ it is a setting of a running model, which training moves; it is never saved.
    """

    _open_loops: float
    """A float as τ is: torch.compile takes new values of it without compiling for each."""

    @property
    def open_loops(self) -> int:
        """Loops that tokens may take, 1 to L."""
        return round(self._open_loops)

    @open_loops.setter
    def open_loops(self, value: int) -> None:
        self._open_loops = float(value)

    def among_open(self, logits_ML: Tensor) -> Tensor:
        """The logits with −∞ at closed loops: p is then a softmax over the others, [M, L]."""
        if self._open_loops >= logits_ML.shape[-1]:
            return logits_ML
        loops_L = torch.arange(logits_ML.shape[-1], device=logits_ML.device)
        return logits_ML.masked_fill(loops_L >= self._open_loops, -torch.inf)
