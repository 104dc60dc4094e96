"""The order in which packed executors take tokens: longest first, so that those still running are
always a prefix.

Legend: M tokens, D d_model, L max_loops.
"""

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor

from versatileffn.ffn.imagined import imagined_counts, is_imagined
from versatileffn.ffn.token_weights import TokenWeights

BLOCK = 512
"""Tokens at once on the CPU: enough for matrix products at full speed, few enough that their
hidden activations stay in memory that the process has already touched."""

Count = Callable[[], list[int]]
"""How many tokens run loop 1, 2, … L, and a 0 after them. Their sum is Σ ℓ̂."""


def longest_first(loop_count_M: Tensor) -> Tensor:
    """Indices that order tokens by loop count, most loops first, otherwise as they were, [M]."""
    return loop_count_M.argsort(descending=True, stable=True)


def count_active(loop_count_M: Tensor, max_loops: int) -> Count:
    """Start counting how many tokens run each loop.

    On CUDA the counts travel to the host while loop 1, which every token runs, is computed; this
    is the only time the host waits.
    """
    if is_imagined(loop_count_M):
        imagined = [*imagined_counts(len(loop_count_M), max_loops), 0]
        return lambda: imagined
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


def run_in_order(
    hidden_MD: Tensor,
    weights: TokenWeights,
    make: Callable[[TokenWeights, Count], Callable[[Tensor], Tensor]],
) -> Tensor:
    """Run tokens longest first, on the CPU a block at a time, and put them back, [M, D].

    Args:
        hidden_MD: H₀.
        weights: of the same tokens.
        make: from the weights and counts of a block to what carries it out.
    """
    count = count_active(weights.loop_count, weights.max_loops)
    if not hidden_MD.is_cuda and set(count()) <= {0, len(hidden_MD)}:  # all alike: in order
        return _run_blocks(hidden_MD, weights, count, make)
    order_M = longest_first(weights.loop_count)
    sorted_MD = _run_blocks(hidden_MD.index_select(0, order_M), weights.take(order_M), count, make)
    return torch.empty_like(sorted_MD).index_copy_(0, order_M, sorted_MD)


def _run_blocks(
    start_MD: Tensor,
    weights: TokenWeights,
    count: Count,
    make: Callable[[TokenWeights, Count], Callable[[Tensor], Tensor]],
) -> Tensor:
    tokens = len(start_MD)
    if start_MD.is_cuda or tokens <= BLOCK:
        return make(weights, count)(start_MD)
    output_MD = torch.empty_like(start_MD)
    for first in range(0, tokens, BLOCK):
        rows = slice(first, min(first + BLOCK, tokens))
        here = [min(max(running - first, 0), rows.stop - first) for running in count()]
        output_MD[rows] = make(weights.take(rows), partial(list, here))(start_MD[rows])
    return output_MD
