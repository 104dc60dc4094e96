"""Bytes that tensors hold, by what they are for, as operators make them and Python lets them go.

It sees what torch's dispatcher hands out, so it measures tensors with memory and fake ones alike,
whatever executor or autograd function makes them. What a kernel takes and gives back within one
operator isn't seen.
"""

import weakref
from collections import Counter
from collections.abc import Iterable
from typing import Any, Self

import torch
from torch import Tensor
from torch.distributed.tensor import DTensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


class LiveMemory(TorchDispatchMode):
    """Adds up storages made inside, under the name that `part` has at that moment.

    Attributes:
        part: what storages are made for from now on.
        parts: bytes that are held now, by part.
        total: their sum.
        peak: bytes by part at the moment when there were most, since `forget_peak`.
    """

    def __init__(self) -> None:
        super().__init__()
        self.part = ""
        self.parts: Counter[str] = Counter()
        self._held: dict[int, tuple[str, int, weakref.ref[Any]]] = {}
        self.total = 0
        self.forget_peak()

    def forget_peak(self) -> None:
        """Look for the peak from now on."""
        self.peak, self._highest = Counter[str](), -1

    def belongs_to(self, part: str, tensors: Iterable[Tensor | None]) -> None:
        """Say what tensors are for, now that it is known; of a divided one, this process's part."""
        for tensor in tensors:
            key = None if tensor is None else _local(tensor).untyped_storage()._cdata
            if key in self._held:
                before, size, reference = self._held[key]
                self._add(before, -size)
                self._held[key] = part, size, reference
                self._add(part, size)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run one operator, and note what it made."""
        made = func(*args, **(kwargs or {}))
        for leaf in tree_leaves(made):
            if isinstance(leaf, Tensor):
                self._note(_local(leaf).untyped_storage())
        return made

    def __enter__(self) -> Self:
        """Look at storages that grow and shrink, too, as FSDP2 lets them."""
        self._resize = resize = torch.UntypedStorage.resize_

        def resized(storage: torch.UntypedStorage, size: int) -> Any:
            result = resize(storage, size)
            self._note(storage)
            return result

        torch.UntypedStorage.resize_ = resized  # type: ignore[method-assign, assignment]
        super().__enter__()
        return self

    def __exit__(self, *error: Any) -> None:
        """Leave torch as it was."""
        super().__exit__(*error)
        torch.UntypedStorage.resize_ = self._resize  # type: ignore[method-assign]

    def _note(self, storage: torch.UntypedStorage) -> None:
        key, size = storage._cdata, storage.nbytes()
        if key in self._held:  # a view, what was written in place, or another size
            part, before, reference = self._held[key]
            if size != before:
                self._held[key] = part, size, reference
                self._add(part, size - before)
            return

        def gone(_: Any) -> None:
            part, size, _reference = self._held.pop(key)
            self._add(part, -size)

        self._held[key] = self.part, size, weakref.ref(storage, gone)
        self._add(self.part, size)

    def _add(self, part: str, size: int) -> None:
        self.parts[part] += size
        self.total += size
        if self.total > self._highest:
            self._highest, self.peak = self.total, self.parts.copy()


def _local(tensor: Tensor) -> Tensor:
    """This process's part of a tensor that may be divided."""
    return tensor._local_tensor if isinstance(tensor, DTensor) else tensor
