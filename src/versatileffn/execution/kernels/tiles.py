"""How the products are cut into tiles, and which cut is used for which shape.

A table has the cuts, chosen by what fits Hopper's registers and shared memory. Nothing is timed
unless it is asked for with `timing_tiles`: a first call would take minutes of compilation, and
inside the capture of a CUDA graph it can't be done at all.

Legend: M tokens, D d_model, F d_hidden.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace

import torch


@dataclass(frozen=True)
class Tile:
    """One way to cut a product.

    Args:
        m, n, k: rows, columns, and depth of a step.
        warps, stages: warps of a program; steps whose operands are on their way at once.
        group: row blocks that share the weights' columns in L2.
        per_processor: programs that one multiprocessor holds.
        tma: read operands through tensor descriptors.
        flatten: let the loop over tiles and the one over steps overlap.
    """

    m: int
    n: int
    k: int
    warps: int
    stages: int
    group: int = 8
    per_processor: int = 1
    tma: bool = True
    flatten: bool = False

    def blocks(self) -> dict[str, int | bool]:
        """The kernel's constants."""
        return {
            "BLOCK_M": self.m,
            "BLOCK_N": self.n,
            "BLOCK_K": self.k,
            "GROUP": self.group,
            "TMA": self.tma,
            "FLATTEN": self.flatten,
            # 32 values a thread: more and what follows a product is spilled to memory
            "PARTS": min(max(self.m * self.n // (self.warps * 32 * 32), 1), 4),
        }


# The first of each row is the default, the others are tried under `timing_tiles`. A tile of the up
# product has two accumulators, so its n is half of what the down product's may be.
UP = {
    128: [Tile(64, 64, 64, 4, 4, per_processor=2), Tile(64, 128, 64, 8, 4)],
    1 << 62: [
        Tile(128, 128, 64, 8, 4),
        Tile(128, 128, 64, 8, 3),
        Tile(128, 128, 64, 8, 3, flatten=True),
        Tile(128, 128, 64, 8, 4, group=16),
        Tile(128, 64, 64, 4, 3, per_processor=2),
        Tile(128, 128, 64, 8, 3, tma=False),
    ],
}
DOWN = {
    128: [Tile(64, 64, 128, 4, 3, per_processor=2), Tile(64, 128, 64, 4, 4)],
    1 << 62: [
        Tile(128, 256, 64, 8, 3),
        Tile(128, 256, 64, 8, 4),
        Tile(128, 256, 64, 8, 3, flatten=True),
        Tile(128, 128, 64, 8, 4, per_processor=1),
        Tile(128, 128, 64, 4, 3, per_processor=2),
        Tile(128, 256, 64, 8, 3, tma=False),
    ],
}


@dataclass(frozen=True)
class DecodeTile:
    """How the products over a few tokens are cut.

    Args:
        up_n, up_k, down_n, down_k: columns, and depth of a step, of the two products.
        splits: programs that share a row of W_out.
        warps, stages: see `Tile`.
    """

    up_n: int
    up_k: int
    down_n: int
    down_k: int
    splits: int
    warps: int = 4
    stages: int = 4

    def blocks(self, rows: int, d_model: int) -> dict[str, dict[str, int]]:
        """The constants of `decode_up` and `decode_down`."""
        up = {"BLOCK_M": rows, "BLOCK_N": self.up_n, "BLOCK_K": self.up_k}
        down = {"BLOCK_M": rows, "BLOCK_N": self.down_n, "BLOCK_K": self.down_k}
        return {
            "up": up | {"DOWN_BLOCKS": -(-d_model // self.down_n)},
            "down": down | {"SPLITS": self.splits},
        }


DECODE = DecodeTile(16, 256, 16, 256, 4)
"""At D = 1024, F = 4096: 256 programs that read 64 KiB each, then 256 that read 32 KiB each."""
DECODE_INTERPRETED = DecodeTile(32, 16, 32, 16, 3, 1, 1)

FLOAT32 = Tile(64, 64, 32, 4, 3, tma=False)
INTERPRETED = Tile(16, 32, 32, 1, 1, group=2)

TABLES = {"up": UP, "down": DOWN}
Key = tuple[str, int, int, int, torch.dtype]
_chosen: dict[Key, Tile] = {}
_timing = False


@contextmanager
def timing_tiles() -> Iterator[dict[Key, Tile]]:
    """Inside, the first call of each shape times the table's tiles and keeps the fastest.

    Yields:
        what was chosen, by product, D, F, largest M of the row, and dtype; it stays in force.
    """
    global _timing
    before, _timing = _timing, True
    try:
        yield _chosen
    finally:
        _timing = before


def choose_tile(
    product: str,
    num_tokens: int,
    d_model: int,
    d_hidden: int,
    dtype: torch.dtype,
    tma: bool,
    launch: Callable[[Tile], object],
) -> Tile:
    """The tile of a product; under `timing_tiles` the fastest of those that run.

    Args:
        product: `up` or `down`.
        tma: whether these operands can be read through descriptors.
        launch: runs the product with a tile; it may be called any number of times.
    """
    if dtype == torch.float32:
        return FLOAT32
    limit = min(row for row in TABLES[product] if row >= num_tokens)
    key = (product, d_model, d_hidden, limit, dtype)
    if key in _chosen:
        return _chosen[key]
    candidates = [tile for tile in TABLES[product][limit] if tma or not tile.tma]
    if not candidates:
        candidates = [replace(tile, tma=False) for tile in TABLES[product][limit]]
    if not _timing or torch.cuda.is_current_stream_capturing():
        return candidates[0]
    _chosen[key] = _fastest(candidates, launch)
    return _chosen[key]


def _fastest(candidates: list[Tile], launch: Callable[[Tile], object]) -> Tile:
    """Time the tiles; one that doesn't compile or fit on this device is left out.

    Raises:
        RuntimeError: none of them runs.
    """
    from triton.testing import do_bench

    times: dict[Tile, float] = {}
    failed: Exception | None = None
    for tile in candidates:
        try:
            times[tile] = do_bench(lambda tile=tile: launch(tile), warmup=10, rep=40)
        except Exception as error:  # compilers raise what they like
            failed = error
    if not times:
        raise RuntimeError("no tile of this product runs on this device") from failed
    return min(times, key=lambda tile: times[tile])
