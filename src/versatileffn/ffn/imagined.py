"""What tensors without values are taken to hold, where a pass is planned and not run.

How many rows a packed pass multiplies, and each real expert, depends on values. A pass over fake
tensors has none: it runs only where somebody says what they would be.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor

_MEAN_LOOPS: ContextVar[float | None] = ContextVar("versatileffn_imagined_loops", default=None)


@contextmanager
def assume_mean_loops(mean_loops: float) -> Iterator[None]:
    """Run packed passes and real experts over fake tensors inside.

    Args:
        mean_loops: of the tokens, each of which takes one of the whole numbers around it; what is
            above a layer's L counts as L. Experts are taken to get equally many.
    """
    token = _MEAN_LOOPS.set(mean_loops)
    try:
        yield
    finally:
        _MEAN_LOOPS.reset(token)


def is_imagined(tensor: Tensor) -> bool:
    """Whether a tensor has no values, and somebody says what they would be."""
    return isinstance(tensor, FakeTensor) and _MEAN_LOOPS.get() is not None


def imagined_counts(tokens: int, max_loops: int) -> list[int]:
    """How many of M tokens run loop 1, 2, … L."""
    mean = _MEAN_LOOPS.get()
    assert mean is not None
    return [round(tokens * min(max(mean - loop, 0.0), 1.0)) for loop in range(max_loops)]


def imagined_sizes(rows: int, groups: int) -> list[int]:
    """As many rows for each group, as nearly as they divide."""
    return [rows * (n + 1) // groups - rows * n // groups for n in range(groups)]
