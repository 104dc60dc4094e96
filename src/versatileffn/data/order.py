"""In which order training sees the windows: a pure function of seed and epoch."""

from collections.abc import Callable

import numpy as np

from versatileffn.data.permutation import Permutation
from versatileffn.errors import ConfigError

LARGEST_TABLE = 2**22
"""Windows whose order is held as a table, of 32 MiB at most; the order of more is computed."""


def order_name(num_windows: int) -> str:
    """What a run's record calls the order of so many windows; it changes if the order ever does."""
    return "table-1" if num_windows <= LARGEST_TABLE else "computed-1"


def epoch_order(num_windows: int, seed: int, epoch: int) -> Callable[[np.ndarray], np.ndarray]:
    """What gives the windows at places of one epoch, in memory that doesn't grow with the corpus.

    Args:
        num_windows, seed, epoch: see `window_order`.

    Returns:
        A function of places, int64 of shape (places,) in 0 … num_windows-1, to windows.
    """
    if num_windows <= LARGEST_TABLE:
        return window_order(num_windows, seed, epoch).take
    return Permutation(num_windows, seed, epoch)


def window_order(num_windows: int, seed: int, epoch: int) -> np.ndarray:
    """The order in which one epoch visits the windows.

    It sorts the raw 64-bit output of PCG64, which NumPy promises never to change (it makes no such
    promise for `Generator.permutation`), so an order can be continued on another release.

    Args:
        num_windows: how many windows there are.
        seed: the run's seed, 0 or more.
        epoch: 0-based epoch.

    Returns:
        A permutation of 0 … num_windows-1, int64 of shape (num_windows,).

    Raises:
        ConfigError: an argument is negative.
    """
    for name, value in (("num_windows", num_windows), ("seed", seed), ("epoch", epoch)):
        if value < 0:
            raise ConfigError(f"{name}={value} must not be negative")
    bits = np.random.PCG64(np.random.SeedSequence([seed, epoch])).random_raw(num_windows)
    return np.argsort(bits, kind="stable")
