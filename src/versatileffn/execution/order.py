"""The order in which packed executors take tokens: longest first, so that those still running are
always a prefix.

Legend: M tokens, L max_loops.
"""

from collections.abc import Callable

import torch
from torch import Tensor


def longest_first(loop_count_M: Tensor) -> Tensor:
    """Indices that order tokens by loop count, most loops first, otherwise as they were, [M]."""
    return loop_count_M.argsort(descending=True, stable=True)


def count_active(loop_count_M: Tensor, max_loops: int) -> Callable[[], list[int]]:
    """Start counting how many tokens run loop 1, 2, … L; their sum is Σ ℓ̂.

    On CUDA the counts travel to the host while loop 1, which every token runs, is computed; this
    is the only time the host waits.

    Returns:
        A function that waits and returns the L counts, and a 0 after them.
    """
    loops_L = torch.arange(1, max_loops + 1, device=loop_count_M.device)
    active_L = (loop_count_M[:, None] >= loops_L).sum(0)
    if not active_L.is_cuda:
        counts = [*active_L.tolist(), 0]
        return lambda: counts
    pinned_L = torch.empty(max_loops, dtype=active_L.dtype, pin_memory=True)
    pinned_L.copy_(active_L, non_blocking=True)
    arrived = torch.cuda.Event()
    arrived.record()

    def wait() -> list[int]:
        arrived.synchronize()
        return [*pinned_L.tolist(), 0]

    return wait
