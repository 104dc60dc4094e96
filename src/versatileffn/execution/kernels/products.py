"""The two products of a loop over many tokens, with what surrounds them fused in.

Both are persistent: as many programs as fit run at once, and each takes tile after tile of the rows
that run this loop. Their number is read from device memory, so no program is started for nothing
and no host waits. Operands are read through tensor descriptors (TMA) or plain pointers.

Legend: M rows (tokens in the order of loop counts), D d_model, F d_hidden, N num_experts.
"""

# mypy: allow-untyped-defs
# Triton reads annotations of kernel arguments as types of its own.

import triton
import triton.language as tl

from versatileffn.execution.kernels.activation import activation
from versatileffn.execution.kernels.epilogue import add_and_leave, blend_and_store


@triton.jit
def load_tile(
    source,
    row,
    column,
    rows,
    columns,
    BLOCK_R: tl.constexpr,
    BLOCK_C: tl.constexpr,
    TMA: tl.constexpr,
    WIDEN: tl.constexpr,
):
    """A tile of a row-major matrix, zero outside it.

    WIDEN makes it float32, for Triton's interpreter, whose products read bfloat16 as integers.
    """
    if TMA:
        tile = source.load([row, column])
    else:
        at_row = row + tl.arange(0, BLOCK_R)
        at_column = column + tl.arange(0, BLOCK_C)
        places = source + at_row[:, None].to(tl.int64) * columns + at_column[None, :]
        tile = tl.load(
            places, mask=(at_row < rows)[:, None] & (at_column < columns)[None, :], other=0.0
        )
    if WIDEN:
        tile = tile.to(tl.float32)
    return tile


@triton.jit
def place_tile(tile, row_blocks, column_blocks, GROUP: tl.constexpr):
    """Row and column block of a tile: GROUP row blocks share their columns' weights in L2."""
    width = GROUP * column_blocks
    first = tile // width * GROUP
    size = min(row_blocks - first, GROUP)
    return first + tile % width % size, tile % width // size


@triton.jit
def half_of(tile, PART: tl.constexpr):
    """The left or the right half of the columns."""
    halves = tl.reshape(tile, (tile.shape[0], 2, tile.shape[1] // 2))
    left, right = tl.split(tl.permute(halves, (0, 2, 1)))
    return left if PART == 0 else right


@triton.jit
def part_of(tile, PART: tl.constexpr, PARTS: tl.constexpr):
    """One of 1, 2 or 4 equal ranges of columns.

    What follows a product goes through the tile in parts: for a whole tile of 128 × 256 its
    intermediate values would be spilled to memory.
    """
    tl.static_assert(PARTS == 1 or PARTS == 2 or PARTS == 4)
    if PARTS == 1:
        part = tile
    elif PARTS == 2:
        part = half_of(tile, PART)
    else:
        part = half_of(half_of(tile, PART // 2), PART % 2)
    return part


@triton.jit
def up_product(
    x_MD,
    gate_FD,
    up_FD,
    order_M,
    active_L,
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
    D: tl.constexpr,
    F: tl.constexpr,
    NUM_EXPERTS: tl.constexpr,
    FIRST: tl.constexpr,
    GATED: tl.constexpr,
    ACT: tl.constexpr,
    PRECISION: tl.constexpr,
    WIDEN: tl.constexpr,
    PROGRAMS: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    GROUP: tl.constexpr,
    TMA: tl.constexpr,
    FLATTEN: tl.constexpr,
    PARTS: tl.constexpr,
):
    """a = φ(W_proj x), weighed for W_out. See `epilogue.blend_and_store`."""
    active = tl.load(active_L + loop - 1)
    row_blocks = tl.cdiv(active, BLOCK_M)
    column_blocks = tl.cdiv(F, BLOCK_N)
    for tile in tl.range(tl.program_id(0), row_blocks * column_blocks, PROGRAMS, flatten=FLATTEN):
        row_block, column_block = place_tile(tile, row_blocks, column_blocks, GROUP)
        row, column = row_block * BLOCK_M, column_block * BLOCK_N
        gate = tl.zeros((BLOCK_M, BLOCK_N), tl.float32)
        up = tl.zeros((BLOCK_M, BLOCK_N), tl.float32)
        for step in range(tl.cdiv(D, BLOCK_K)):
            k = step * BLOCK_K
            x = load_tile(x_MD, row, k, M, D, BLOCK_M, BLOCK_K, TMA, WIDEN)
            if GATED:
                weight = load_tile(gate_FD, column, k, F, D, BLOCK_N, BLOCK_K, TMA, WIDEN)
                gate = tl.dot(x, weight.T, gate, input_precision=PRECISION)
            weight = load_tile(up_FD, column, k, F, D, BLOCK_N, BLOCK_K, TMA, WIDEN)
            up = tl.dot(x, weight.T, up, input_precision=PRECISION)
        if GATED:
            a = activation(gate, ACT) * up
        else:
            a = activation(up, ACT)
        rows = row + tl.arange(0, BLOCK_M)
        alive = rows < active
        tokens = tl.load(order_M + rows, mask=alive, other=0).to(tl.int64)
        for part in tl.static_range(PARTS):
            blend_and_store(
                part_of(a, part, PARTS),
                rows.to(tl.int64),
                tokens,
                alive,
                column + part * (BLOCK_N // PARTS) + tl.arange(0, BLOCK_N // PARTS),
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
def down_product(
    blend_MF,
    down_DF,
    order_M,
    active_L,
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
    PROGRAMS: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    GROUP: tl.constexpr,
    TMA: tl.constexpr,
    FLATTEN: tl.constexpr,
    PARTS: tl.constexpr,
):
    """W_out b, added to the residual stream or written out. See `epilogue.add_and_leave`."""
    active = tl.load(active_L + loop - 1)
    row_blocks = tl.cdiv(active, BLOCK_M)
    column_blocks = tl.cdiv(D, BLOCK_N)
    for tile in tl.range(tl.program_id(0), row_blocks * column_blocks, PROGRAMS, flatten=FLATTEN):
        row_block, column_block = place_tile(tile, row_blocks, column_blocks, GROUP)
        row, column = row_block * BLOCK_M, column_block * BLOCK_N
        update = tl.zeros((BLOCK_M, BLOCK_N), tl.float32)
        for step in range(tl.cdiv(F, BLOCK_K)):
            k = step * BLOCK_K
            blend = load_tile(blend_MF, row, k, M, F, BLOCK_M, BLOCK_K, TMA, WIDEN)
            weight = load_tile(down_DF, column, k, D, F, BLOCK_N, BLOCK_K, TMA, WIDEN)
            update = tl.dot(blend, weight.T, update, input_precision=PRECISION)
        rows = row + tl.arange(0, BLOCK_M)
        alive = rows < active
        tokens = tl.load(order_M + rows, mask=alive, other=0).to(tl.int64)
        for part in tl.static_range(PARTS):
            add_and_leave(
                part_of(update, part, PARTS),
                rows.to(tl.int64),
                tokens,
                alive,
                column + part * (BLOCK_N // PARTS) + tl.arange(0, BLOCK_N // PARTS),
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
