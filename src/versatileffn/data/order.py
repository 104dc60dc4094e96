"""In which order training sees the windows: a pure function of seed and epoch."""

from collections.abc import Iterator

import numpy as np
from torch.utils.data import Sampler

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


class WindowSampler(Sampler[int]):
    """A torch sampler over `window_order` that can begin anywhere inside an epoch.

    Args:
        num_windows: how many windows the data set has.
        seed: the run's seed, 0 or more.
        epoch: 0-based epoch to begin with.
        start: windows of that epoch which were already seen.
    """

    def __init__(self, num_windows: int, seed: int, epoch: int = 0, start: int = 0) -> None:
        if not 0 <= start <= num_windows:
            raise ConfigError(f"start={start} lies outside the epoch's {num_windows} windows")
        self.num_windows = num_windows
        self.seed = seed
        self.epoch = epoch
        self.start = start

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch; another epoch than the current one begins at its first window."""
        if epoch != self.epoch:
            self.epoch, self.start = epoch, 0

    def continue_after(self, windows_seen: int) -> None:
        """Continue a run that has seen `windows_seen` windows since its very first epoch."""
        if self.num_windows == 0:
            raise ConfigError("there are no windows to continue with")
        self.epoch, self.start = divmod(windows_seen, self.num_windows)

    def __iter__(self) -> Iterator[int]:
        return iter(window_order(self.num_windows, self.seed, self.epoch)[self.start :].tolist())

    def __len__(self) -> int:
        return self.num_windows - self.start
