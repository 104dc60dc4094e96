"""What autograd keeps of a forward pass, seen through its own hooks."""

from collections.abc import Callable, Iterable
from typing import NamedTuple

import torch
from torch import Tensor


class Saved(NamedTuple):
    """What autograd keeps.

    Args:
        values: floating-point numbers.
        bytes: of everything, indices included.
    """

    values: float
    bytes: float


def saved_for_backward(run: Callable[[], object], weights: Iterable[Tensor]) -> Saved:
    """Measure what a forward pass saves, custom autograd functions included.

    Args:
        run: the forward pass; what it returns is kept alive while counting.
        weights: tensors that are there anyway and don't count.

    Returns:
        Sums over distinct storages: a saved view keeps its whole storage.
    """
    known = {weight.untyped_storage().data_ptr() for weight in weights}
    kept: dict[int, Tensor] = {}  # the tensors stay referenced, so that no address is used again

    def pack(tensor: Tensor) -> Tensor:
        address = tensor.untyped_storage().data_ptr()
        if address not in known:
            kept.setdefault(address, tensor)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        result = run()
    values = sum(
        tensor.untyped_storage().nbytes() // tensor.element_size()
        for tensor in kept.values()
        if tensor.is_floating_point()
    )
    size = sum(tensor.untyped_storage().nbytes() for tensor in kept.values())
    del result
    return Saved(values, size)
