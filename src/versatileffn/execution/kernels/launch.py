"""The sequence of launches that carries out a plan. None of them waits for the host.

Legend: M tokens, D d_model, F d_hidden, N num_experts, L max_loops; U_ℓ = H_ℓ − H₀.
"""

from dataclasses import dataclass, field, replace
from typing import Any

import torch
import triton
from torch import Tensor
from triton.tools.tensor_descriptor import TensorDescriptor

from versatileffn.execution.kernels.decode import decode_down, decode_up
from versatileffn.execution.kernels.normalize import normalize
from versatileffn.execution.kernels.order import order_by_loops
from versatileffn.execution.kernels.products import down_product, up_product
from versatileffn.execution.kernels.tiles import (
    DECODE,
    DECODE_INTERPRETED,
    INTERPRETED,
    Tile,
    choose_tile,
)

DECODE_TOKENS = 32
"""Up to so many tokens fit into one block of rows, and reading the weights is all that counts."""
INTERPRETING = not isinstance(up_product, triton.runtime.JITFunction)
"""Whether Triton's interpreter runs the kernels, on CPU tensors (TRITON_INTERPRET=1)."""


@dataclass
class Work:
    """One layer's tensors, contiguous and on one device, and what they mean.

    Args:
        hidden_MD: H.
        norm_D, eps: weight and epsilon of the RMSNorm.
        proj: gate (if any) and up, each [F, D].
        down_DF: W_out.
        activation: a name from `ffn.mlp.ACTIVATIONS`.
        loop_count_M: ℓ̂.
        kept_M: 1 − λ.
        routed_MN, owner_F: λs·g spread over the experts, and whose a neuron is; None without.
        gains_L: γ; None for 1.
        shared: σ.
        max_loops: L.
    """

    hidden_MD: Tensor
    norm_D: Tensor
    eps: float
    proj: list[Tensor]
    down_DF: Tensor
    activation: str
    loop_count_M: Tensor
    kept_M: Tensor
    routed_MN: Tensor | None
    owner_F: Tensor | None
    gains_L: Tensor | None
    shared: float
    max_loops: int
    gate_FD: Tensor | None = field(init=False)
    up_FD: Tensor = field(init=False)
    output_MD: Tensor = field(init=False)
    totals: list[Tensor] = field(init=False)

    def __post_init__(self) -> None:
        self.gate_FD, self.up_FD = self.proj[-2] if len(self.proj) == 2 else None, self.proj[-1]
        self.output_MD = torch.empty_like(self.hidden_MD)
        # U₁ stays; later ones take turns, so that no launch writes what it reads and each may be
        # repeated, as timing it does.
        count = min(self.max_loops - 1, 3)
        self.totals = [torch.empty_like(self.hidden_MD) for _ in range(count)]

    def total(self, loop: int) -> Tensor:
        """U_loop, for loops 1 … L; in loop L nobody stays, so any tensor will do."""
        if not self.totals:
            return self.output_MD
        index = 0 if loop <= 1 else 1 + loop % 2
        return self.totals[min(index, len(self.totals) - 1)]

    def buffers(self) -> tuple[Tensor, Tensor]:
        """b, and the routed part of a₁ of rows that stay, each [M, F]."""
        blend_MF = self.hidden_MD.new_empty(len(self.hidden_MD), len(self.up_FD))
        return blend_MF, blend_MF if self.routed_MN is None else torch.empty_like(blend_MF)

    def blend_arguments(self, loop: int) -> dict[str, Any]:
        """What `blend_and_store` and the activation need."""
        return {
            "loop_count_M": self.loop_count_M,
            "kept_M": self.kept_M,
            "routed_MN": self.routed_MN,
            "owner_F": self.owner_F,
            "gains_L": self.gains_L,
            "M": len(self.hidden_MD),
            "loop": loop,
            "shared": self.shared,
            "NUM_EXPERTS": 0 if self.routed_MN is None else self.routed_MN.shape[-1],
            "GATED": self.gate_FD is not None,
            "ACT": self.activation,
        } | self.constants(loop)

    def leave_arguments(self, loop: int) -> dict[str, Any]:
        """What `add_and_leave` needs."""
        return {
            "loop_count_M": self.loop_count_M,
            "kept_M": self.kept_M,
            "first_MD": self.total(1),
            "previous_MD": self.total(loop - 1),
            "next_MD": self.total(loop),
            "output_MD": self.output_MD,
            "M": len(self.hidden_MD),
            "loop": loop,
            "shared": self.shared,
            "SHARED": self.shared != 0,
        } | self.constants(loop)

    def constants(self, loop: int) -> dict[str, Any]:
        """What all products share."""
        exact = torch.get_float32_matmul_precision() == "highest"
        return {
            "D": self.hidden_MD.shape[-1],
            "F": len(self.up_FD),
            "FIRST": loop == 1,
            "PRECISION": "ieee" if exact else "tf32",
            "WIDEN": INTERPRETING,
        }


def run_many(work: Work) -> Tensor:
    """Carry out a plan for many tokens: sort, then three launches a loop; Y − H₀, [M, D]."""
    order_M, active_L = order_by_loops(work.loop_count_M, work.max_loops)
    blend_MF, routed = work.buffers()
    x_MD = torch.empty_like(work.hidden_MD)
    num_tokens, d_model = x_MD.shape
    for loop in range(1, work.max_loops + 1):
        normalize[(num_tokens,)](
            work.hidden_MD,
            work.total(loop - 1),
            work.norm_D,
            x_MD,
            order_M,
            active_L,
            loop,
            work.eps,
            d_model,
            BLOCK_D=triton.next_power_of_2(d_model),
            FIRST=loop == 1,
        )
        operands = (x_MD, work.gate_FD, work.up_FD)
        blend = work.blend_arguments(loop) | {"routed_MF": routed, "blend_MF": blend_MF}
        _launch("up", up_product, operands, (order_M, active_L), work, blend)
        leave = work.leave_arguments(loop)
        _launch("down", down_product, (blend_MF, work.down_DF), (order_M, active_L), work, leave)
    return work.output_MD


def _launch(
    product: str,
    kernel: Any,
    operands: tuple[Tensor | None, ...],
    order: tuple[Tensor, Tensor],
    work: Work,
    arguments: dict[str, Any],
) -> None:
    """Start a persistent product with the tile that is chosen for its shape."""

    def launch(tile: Tile) -> None:
        programs = 3 if INTERPRETING else tile.per_processor * _processors(work.hidden_MD.device)
        sources = _descriptors(operands, tile) if tile.tma else operands
        names = ("x_MD", "gate_FD", "up_FD") if product == "up" else ("blend_MF", "down_DF")
        kernel[(programs,)](
            order_M=order[0],
            active_L=order[1],
            PROGRAMS=programs,
            num_warps=tile.warps,
            num_stages=tile.stages,
            **(arguments | dict(zip(names, sources, strict=True)) | tile.blocks()),
        )

    num_tokens, d_model = work.hidden_MD.shape
    d_hidden, dtype = len(work.up_FD), work.hidden_MD.dtype
    if INTERPRETING:
        tile = replace(INTERPRETED, tma=_fits_descriptors(work))
    else:
        tma = _fits_descriptors(work) and torch.cuda.get_device_capability() >= (9, 0)
        tile = choose_tile(product, num_tokens, d_model, d_hidden, dtype, tma, launch)
    launch(tile)


def _descriptors(operands: tuple[Tensor | None, ...], tile: Tile) -> tuple[Any, ...]:
    """Tensor descriptors: of the rows in blocks of m, of the weights in blocks of n."""
    heights = (tile.m, *[tile.n] * (len(operands) - 1))
    return tuple(
        None if operand is None else TensorDescriptor.from_tensor(operand, [height, tile.k])
        for operand, height in zip(operands, heights, strict=True)
    )


def _fits_descriptors(work: Work) -> bool:
    """Rows must start at multiples of 16 bytes."""
    sizes = (work.hidden_MD.shape[-1], len(work.up_FD))
    tensors = (work.gate_FD, work.up_FD, work.down_DF)
    return all(size * work.hidden_MD.element_size() % 16 == 0 for size in sizes) and all(
        tensor is None or tensor.data_ptr() % 16 == 0 for tensor in tensors
    )


_processor_counts: dict[torch.device, int] = {}


def _processors(device: torch.device) -> int:
    if device not in _processor_counts:
        count = torch.cuda.get_device_properties(device).multi_processor_count
        _processor_counts[device] = count
    return _processor_counts[device]


def run_few(work: Work) -> Tensor:
    """Carry out a plan for at most `DECODE_TOKENS` tokens, two launches a loop; Y − H₀, [M, D]."""
    num_tokens, d_model = work.hidden_MD.shape
    d_hidden, rows = len(work.up_FD), 16 if num_tokens <= 16 else 32
    tile = DECODE_INTERPRETED if INTERPRETING else DECODE
    blocks = tile.blocks(rows, d_model)
    down_blocks = triton.cdiv(d_model, tile.down_n)
    blend_MF, routed = work.buffers()
    parts = work.hidden_MD.new_empty(tile.splits, rows, d_model, dtype=torch.float32)
    arrived = work.loop_count_M.new_empty(down_blocks, dtype=torch.int32)
    for loop in range(1, work.max_loops + 1):
        decode_up[(triton.cdiv(d_hidden, tile.up_n),)](
            hidden_MD=work.hidden_MD,
            total_MD=work.total(loop - 1),
            norm_D=work.norm_D,
            gate_FD=work.gate_FD,
            up_FD=work.up_FD,
            arrived=arrived,
            eps=work.eps,
            routed_MF=routed,
            blend_MF=blend_MF,
            num_warps=tile.warps,
            num_stages=tile.stages,
            **(work.blend_arguments(loop) | blocks["up"]),
        )
        decode_down[(down_blocks, tile.splits)](
            blend_MF=blend_MF,
            down_DF=work.down_DF,
            parts_SMD=parts,
            arrived=arrived,
            num_warps=tile.warps,
            num_stages=tile.stages,
            **(work.leave_arguments(loop) | blocks["down"]),
        )
    return work.output_MD
