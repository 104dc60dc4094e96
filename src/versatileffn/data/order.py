"""In which order training sees the windows: a pure function of seed and epoch."""

import numpy as np

from versatileffn.errors import ConfigError


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
