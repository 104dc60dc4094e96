"""The two launches of a loop over a few tokens: the weights are read once, by every processor.

At one token the time is that of reading the weights, so the blocks are narrow enough to occupy all
processors, W_out's long rows are split over several programs, and the norm is part of the first
product. Nothing is sorted: all tokens are in one block of rows, and those that stopped are masked.
Both launches return at once when no token wants this loop.

Legend: M tokens, D d_model, F d_hidden, N num_experts, S splits of W_out's rows.
"""

# mypy: allow-untyped-defs
# Triton reads annotations of kernel arguments as types of its own.

import triton
import triton.language as tl

from versatileffn.execution.kernels.activation import activation
from versatileffn.execution.kernels.epilogue import add_and_leave, blend_and_store
from versatileffn.execution.kernels.products import load_tile


@triton.jit
def decode_up(
    hidden_MD,
    total_MD,
    norm_D,
    gate_FD,
    up_FD,
    arrived,
    loop_count_M,
    kept_M,
    routed_MN,
    owner_F,
    gains_L,
    routed_MF,
    blend_MF,
    M,
    loop,
    shared,
    eps,
    D: tl.constexpr,
    F: tl.constexpr,
    NUM_EXPERTS: tl.constexpr,
    FIRST: tl.constexpr,
    GATED: tl.constexpr,
    ACT: tl.constexpr,
    PRECISION: tl.constexpr,
    WIDEN: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    DOWN_BLOCKS: tl.constexpr,
):
    """a = φ(W_proj norm(H₀ + U_{ℓ−1})), weighed for W_out.

    norm(h) = rstd·(w ⊙ h), and rstd is one factor a row: it is known when the products end.
    """
    block = tl.program_id(0)
    if block == 0:  # `decode_down` of this loop starts after this launch
        blocks = tl.arange(0, triton.next_power_of_2(DOWN_BLOCKS))
        tl.store(arrived + blocks, tl.zeros_like(blocks), mask=blocks < DOWN_BLOCKS)
    rows = tl.arange(0, BLOCK_M)
    loops = tl.load(loop_count_M + rows, mask=rows < M, other=0)
    if tl.max(loops, 0) < loop:
        return
    alive = loops >= loop
    column = block * BLOCK_N
    gate = tl.zeros((BLOCK_M, BLOCK_N), tl.float32)
    up = tl.zeros((BLOCK_M, BLOCK_N), tl.float32)
    squares = tl.zeros((BLOCK_M,), tl.float32)
    for step in range(tl.cdiv(D, BLOCK_K)):
        k = step * BLOCK_K
        at_column = k + tl.arange(0, BLOCK_K)
        places = rows[:, None] * D + at_column[None, :]
        inside = alive[:, None] & (at_column < D)[None, :]
        state = tl.load(hidden_MD + places, mask=inside, other=0.0).to(tl.float32)
        if not FIRST:
            state += tl.load(total_MD + places, mask=inside, other=0.0).to(tl.float32)
        squares += tl.sum(state * state, 1)
        scale = tl.load(norm_D + at_column, mask=at_column < D, other=0.0).to(tl.float32)
        x = (state * scale[None, :]).to(hidden_MD.dtype.element_ty)
        if WIDEN:
            x = x.to(tl.float32)
        if GATED:
            weight = load_tile(gate_FD, column, k, F, D, BLOCK_N, BLOCK_K, False, WIDEN)
            gate = tl.dot(x, weight.T, gate, input_precision=PRECISION)
        weight = load_tile(up_FD, column, k, F, D, BLOCK_N, BLOCK_K, False, WIDEN)
        up = tl.dot(x, weight.T, up, input_precision=PRECISION)
    rstd = tl.rsqrt(squares / D + eps)[:, None]
    if GATED:
        a = activation(gate * rstd, ACT) * (up * rstd)
    else:
        a = activation(up * rstd, ACT)
    at_row = rows.to(tl.int64)
    blend_and_store(
        a,
        at_row,
        at_row,
        alive,
        column + tl.arange(0, BLOCK_N),
        loop,
        loop_count_M,
        kept_M,
        routed_MN,
        owner_F,
        gains_L,
        routed_MF,
        blend_MF,
        F,
        shared,
        NUM_EXPERTS,
        FIRST,
    )


@triton.jit
def decode_down(
    blend_MF,
    down_DF,
    parts_SMD,
    arrived,
    loop_count_M,
    kept_M,
    first_MD,
    previous_MD,
    next_MD,
    output_MD,
    M,
    loop,
    shared,
    D: tl.constexpr,
    F: tl.constexpr,
    FIRST: tl.constexpr,
    SHARED: tl.constexpr,
    PRECISION: tl.constexpr,
    WIDEN: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    SPLITS: tl.constexpr,
):
    """W_out b in SPLITS parts; the program that comes last adds them up, always in one order."""
    block, split = tl.program_id(0), tl.program_id(1)
    rows = tl.arange(0, BLOCK_M)
    loops = tl.load(loop_count_M + rows, mask=rows < M, other=0)
    if tl.max(loops, 0) < loop:
        return
    alive = loops >= loop
    column = block * BLOCK_N
    columns = column + tl.arange(0, BLOCK_N)
    steps = tl.cdiv(tl.cdiv(F, BLOCK_K), SPLITS)
    update = tl.zeros((BLOCK_M, BLOCK_N), tl.float32)
    for step in range(steps):
        k = (split * steps + step) * BLOCK_K
        at_column = k + tl.arange(0, BLOCK_K)
        blend = tl.load(
            blend_MF + rows[:, None] * F + at_column[None, :],
            mask=alive[:, None] & (at_column < F)[None, :],
            other=0.0,
        )
        if WIDEN:
            blend = blend.to(tl.float32)
        weight = load_tile(down_DF, column, k, D, F, BLOCK_N, BLOCK_K, False, WIDEN)
        update = tl.dot(blend, weight.T, update, input_precision=PRECISION)

    part = rows[:, None] * D + columns[None, :]
    inside = alive[:, None] & (columns < D)[None, :]
    tl.store(parts_SMD + split * BLOCK_M * D + part, update, mask=inside)
    tl.debug_barrier()  # every thread's part is written before one thread announces it
    before = tl.atomic_add(arrived + block, 1, sem="acq_rel")
    if before == SPLITS - 1:
        total = tl.zeros((BLOCK_M, BLOCK_N), tl.float32)
        for other in tl.static_range(SPLITS):
            # from L2: this processor's L1 may hold what was there before
            total += tl.load(
                parts_SMD + other * BLOCK_M * D + part,
                mask=inside,
                other=0.0,
                cache_modifier=".cg",
            )
        at_row = rows.to(tl.int64)
        add_and_leave(
            total,
            at_row,
            at_row,
            alive,
            columns,
            loop,
            loop_count_M,
            kept_M,
            first_MD,
            previous_MD,
            next_MD,
            output_MD,
            D,
            shared,
            FIRST,
            SHARED,
        )
