"""Tokens ordered by loop count, longest first: a stable counting sort in two launches.

Each program of the first launch counts its tokens by loop count; each of the second adds up what
comes before its own tokens and writes them to their places. There are few different loop counts,
so this is one pass over the tokens where a comparison sort needs many.

Legend: M tokens, L max_loops, P programs.
"""

# mypy: allow-untyped-defs
# Triton reads annotations of kernel arguments as types of its own.

import torch
import triton
import triton.language as tl
from torch import Tensor

BLOCK = 1024
"""Tokens of one program."""


@triton.jit
def _count(loop_count_M, counts_LP, M, LOOPS: tl.constexpr, BLOCK: tl.constexpr):
    tokens = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    loops = tl.load(loop_count_M + tokens, mask=tokens < M, other=0)
    for loop in tl.static_range(LOOPS):
        here = tl.sum((loops == loop + 1).to(tl.int32))
        tl.store(counts_LP + loop * tl.num_programs(0) + tl.program_id(0), here)


@triton.jit
def _place(
    loop_count_M,
    counts_LP,
    order_M,
    active_L,
    M,
    LOOPS: tl.constexpr,
    BLOCK: tl.constexpr,
    PROGRAMS: tl.constexpr,
):
    here, programs = tl.program_id(0), tl.num_programs(0)
    tokens = here * BLOCK + tl.arange(0, BLOCK)
    loops = tl.load(loop_count_M + tokens, mask=tokens < M, other=0)
    others = tl.arange(0, PROGRAMS)
    longer = tl.zeros((), tl.int32)  # tokens with more loops than the ones looked at
    for back in tl.static_range(LOOPS):
        loop = LOOPS - 1 - back
        counts = tl.load(counts_LP + loop * programs + others, mask=others < programs, other=0)
        mine = (loops == loop + 1).to(tl.int32)
        before = longer + tl.sum(tl.where(others < here, counts, 0))
        places = before + tl.cumsum(mine, 0) - mine
        tl.store(order_M + places, tokens, mask=mine == 1)
        longer += tl.sum(counts)
        if here == 0:
            tl.store(active_L + loop, longer)


def order_by_loops(loop_count_M: Tensor, max_loops: int) -> tuple[Tensor, Tensor]:
    """Where each token goes, and how many run each loop, without waiting for either.

    Args:
        loop_count_M: ℓ̂, 1-based, int64 [M], contiguous.
        max_loops: L.

    Returns:
        token indices by falling loop count, stable, int32 [M]; tokens that run loop 1 … L,
        int32 [L].
    """
    num_tokens, device = len(loop_count_M), loop_count_M.device
    programs = triton.cdiv(num_tokens, BLOCK)
    counts_LP = torch.empty(max_loops, programs, dtype=torch.int32, device=device)
    order_M = torch.empty(num_tokens, dtype=torch.int32, device=device)
    active_L = torch.empty(max_loops, dtype=torch.int32, device=device)
    _count[(programs,)](loop_count_M, counts_LP, num_tokens, LOOPS=max_loops, BLOCK=BLOCK)
    _place[(programs,)](
        loop_count_M,
        counts_LP,
        order_M,
        active_L,
        num_tokens,
        LOOPS=max_loops,
        BLOCK=BLOCK,
        PROGRAMS=triton.next_power_of_2(programs),
    )
    return order_M, active_L
