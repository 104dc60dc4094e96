"""FLOPs of the matrix products that really run, in-place and grouped ones included.

torch's own counter knows products by name and misses `addmm_`, `baddbmm_`, `mv`, `addmv`, the
grouped product and attention's CPU kernel; and it doesn't look into custom operators. This one
counts those too, and takes torch's formula wherever it has one.

Legend: 2 FLOPs per multiply-add, as everywhere here.
"""

import math
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

aten = torch.ops.aten
OPAQUE = ("aten", "prim", "prims", "c10d", "profiler")
"""Namespaces whose operators are single steps; any other's are looked into."""


class FlopCounter(TorchDispatchMode):
    """Counts while it is entered, forward and backward.

    Attributes:
        by_operator: FLOPs by the operator's name.
    """

    def __init__(self) -> None:
        super().__init__()
        self.by_operator: Counter[str] = Counter()

    @property
    def total(self) -> int:
        """All FLOPs so far."""
        return sum(self.by_operator.values())

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Run one operator and count it."""
        kwargs = kwargs or {}
        packet = func._overloadpacket
        if packet in OWN:
            self.by_operator[str(packet)] += OWN[packet](args)
        elif packet in flop_registry:
            result = func(*args, **kwargs)
            self.by_operator[str(packet)] += flop_registry[packet](*args, **kwargs, out_val=result)
            return result
        elif func is not torch.ops.prim.device.default:
            with self:
                result = _inside(func, args, kwargs)
            if result is not NotImplemented:
                return result
        return func(*args, **kwargs)


def _inside(func: Any, args: Sequence[Any], kwargs: dict[str, Any]) -> Any:
    """Run the parts of an operator one by one; NotImplemented where it has none to show."""
    if func.namespace in OPAQUE:
        return func.decompose(*args, **kwargs)
    tensors = [value for value in [*args, *kwargs.values()] if isinstance(value, Tensor)]
    on_cuda = any(tensor.is_cuda for tensor in tensors)
    keys = torch._C.DispatchKey
    backend = keys.CUDA if on_cuda else keys.CPU
    if not func.has_kernel_for_dispatch_key(backend):
        backend = keys.CompositeExplicitAutograd
    if not func.has_kernel_for_dispatch_key(backend):
        return func.decompose(*args, **kwargs)
    return func._op_dk(backend, *args, **kwargs)


def _product(first: int) -> Callable[[Sequence[Any]], int]:
    """FLOPs of a matrix product whose factors are arguments `first` and `first + 1`.

    Every element of the left factor meets each column of the right one.
    """

    def flops(args: Sequence[Any]) -> int:
        left, right = args[first], args[first + 1]
        columns = right.shape[-1] if right.dim() > 1 else 1
        return 2 * left.numel() * columns

    return flops


def _grouped(args: Sequence[Any]) -> int:
    """FLOPs of a grouped product: each row meets one group's matrix, or each group its rows."""
    rows, other = args[0], args[1]
    if rows.dim() == other.dim() == 2:  # a weight gradient: [in, S] by [S, out]
        return 2 * rows.numel() * other.shape[-1]
    return 2 * math.prod(rows.shape) * other.shape[-1]


def _attention(args: Sequence[Any]) -> int:
    return flop_registry[aten._scaled_dot_product_flash_attention](*args[:3])


def _attention_backward(args: Sequence[Any]) -> int:
    return flop_registry[aten._scaled_dot_product_flash_attention_backward](*args[:4])


OWN: dict[Any, Callable[[Sequence[Any]], int]] = {
    aten.addmm_: _product(1),
    aten.baddbmm_: _product(1),
    aten.addbmm: _product(1),
    aten.addbmm_: _product(1),
    aten.mv: _product(0),
    aten.addmv: _product(1),
    aten.addmv_: _product(1),
    aten._grouped_mm: _grouped,
    aten._scaled_dot_product_flash_attention_for_cpu: _attention,
    aten._scaled_dot_product_flash_attention_for_cpu_backward: _attention_backward,
}
