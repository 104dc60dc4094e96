"""The default tiles compile for Hopper: matrix units used, nothing spilled, shared memory enough.

Compiling needs no GPU. It can't show that results are right; the interpreter's tests do that.
"""

import re
import subprocess
from pathlib import Path

import pytest

from execution.kernels.conftest import INTERPRETING

triton = pytest.importorskip("triton", reason="Triton isn't installed")
pytestmark = pytest.mark.skipif(INTERPRETING, reason="the interpreter compiles nothing")

SHARED_MEMORY = 227 * 1024
"""Bytes that one program may have on compute capability 9.0."""
POINTERS = {
    "order_M": "*i32", "active_L": "*i32", "loop_count_M": "*i64", "owner_F": "*i64",
    "kept_M": "*fp32", "routed_MN": "*fp32", "gains_L": "*fp32",
    "arrived": "*i32", "parts_SMD": "*fp32", "counts_LP": "*i32",
    "M": "i32", "loop": "i32", "shared": "fp32", "eps": "fp32",
}  # fmt: skip
LAYER = {
    "D": 1024, "F": 4096, "NUM_EXPERTS": 8, "GATED": True, "ACT": "silu", "PRECISION": "ieee",
    "WIDEN": False, "SHARED": True, "PROGRAMS": 132,
}  # fmt: skip


def compile_for_hopper(kernel, constants, warps, stages, tiles=None):
    """The compiled kernel and its bytes of stack per thread.

    Args:
        tiles: shapes of the operands that are read through tensor descriptors.
    """
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    constants = LAYER | constants
    signature, values, aligned = {}, {}, {}
    for index, (name, parameter) in enumerate(zip(kernel.arg_names, kernel.params, strict=True)):
        if parameter.is_constexpr:
            signature[name], values[(index,)] = "constexpr", constants[name]
        elif name in (tiles or {}):
            signature[name] = "tensordesc<bf16[{},{}]>".format(*tiles[name])
        else:
            signature[name] = "i32" if name == "D" else POINTERS.get(name, "*bf16")
        if signature[name].startswith("*") and name != "gains_L":
            aligned[(index,)] = [["tt.divisibility", 16]]
    source = ASTSource(fn=kernel, signature=signature, constexprs=values, attrs=aligned)
    options = {"num_warps": warps, "num_stages": stages}
    return triton.compile(source, target=GPUTarget("cuda", 90, 32), options=options)


def stack_bytes(compiled, folder) -> int:
    """What each thread keeps in memory for want of registers."""
    tool = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"
    if not tool.exists():
        pytest.skip("this Triton comes without cuobjdump")
    binary = folder / "kernel.cubin"
    binary.write_bytes(compiled.asm["cubin"])
    report = subprocess.run(
        [tool, "-res-usage", binary], capture_output=True, text=True, check=True
    )
    return max(int(n) for n in re.findall(r"STACK:(\d+)", report.stdout + report.stderr))


def default_tiles():
    from versatileffn.execution.kernels.tiles import TABLES

    return [(product, row, tiles[0]) for product, t in TABLES.items() for row, tiles in t.items()]


@pytest.mark.parametrize("first", [True, False], ids=["first", "later"])
@pytest.mark.parametrize("index", range(4), ids=["up-128", "up", "down-128", "down"])
def test_products_use_the_matrix_units_and_spill_nothing(index, first, tmp_path):
    from versatileffn.execution.kernels.products import down_product, up_product

    product, _, tile = default_tiles()[index]
    of_rows, of_weights = (tile.m, tile.k), (tile.n, tile.k)
    kernel, operands = {
        "up": (up_product, {"x_MD": of_rows, "gate_FD": of_weights, "up_FD": of_weights}),
        "down": (down_product, {"blend_MF": of_rows, "down_DF": of_weights}),
    }[product]
    constants = tile.blocks() | {"FIRST": first}
    compiled = compile_for_hopper(kernel, constants, tile.warps, tile.stages, operands)
    assert "wgmma.mma_async" in compiled.asm["ptx"]
    assert "cp.async.bulk.tensor" in compiled.asm["ptx"]
    assert compiled.metadata.shared * tile.per_processor <= SHARED_MEMORY
    assert stack_bytes(compiled, tmp_path) == 0


@pytest.mark.parametrize("first", [True, False], ids=["first", "later"])
@pytest.mark.parametrize("name", ["up", "down"])
def test_decoding_spills_nothing(name, first, tmp_path):
    from versatileffn.execution.kernels.decode import decode_down, decode_up
    from versatileffn.execution.kernels.tiles import DECODE

    kernel = {"up": decode_up, "down": decode_down}[name]
    constants = DECODE.blocks(16, 1024)[name] | {"FIRST": first}
    compiled = compile_for_hopper(kernel, constants, DECODE.warps, DECODE.stages)
    assert "mma.sync" in compiled.asm["ptx"]
    assert compiled.metadata.shared <= SHARED_MEMORY
    assert stack_bytes(compiled, tmp_path) == 0


def test_a_tile_that_is_too_large_is_found_out(tmp_path):
    """The control: a whole 128 × 256 tile with two accumulators can't be held in registers."""
    from versatileffn.execution.kernels.products import up_product
    from versatileffn.execution.kernels.tiles import Tile

    tile = Tile(128, 256, 64, 8, 2)
    of_rows, of_weights = (tile.m, tile.k), (tile.n, tile.k)
    operands = {"x_MD": of_rows, "gate_FD": of_weights, "up_FD": of_weights}
    constants = tile.blocks() | {"FIRST": True}
    compiled = compile_for_hopper(up_product, constants, tile.warps, tile.stages, operands)
    assert stack_bytes(compiled, tmp_path) > 0
