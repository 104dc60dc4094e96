"""What a process holds while it runs: resident memory, file handles, threads."""

import time
from dataclasses import dataclass

import psutil

MIB = 2**20


@dataclass(frozen=True)
class Sample:
    """One look at a process.

    Args:
        seconds: since it was first looked at.
        mib: resident memory, MiB.
        handles: open file descriptors.
        threads: of it.
    """

    seconds: float
    mib: float
    handles: int
    threads: int


class Watch:
    """Looks at one process again and again."""

    def __init__(self, pid: int) -> None:
        self.process = psutil.Process(pid)
        self.began = time.monotonic()
        self.samples: list[Sample] = []

    def sample(self) -> None:
        """Take a sample, if the process is still there."""
        try:
            with self.process.oneshot():
                self.samples.append(
                    Sample(
                        time.monotonic() - self.began,
                        self.process.memory_info().rss / MIB,
                        self.process.num_fds(),
                        self.process.num_threads(),
                    )
                )
        except psutil.Error:
            pass


def after(samples: list[Sample], seconds: float) -> list[Sample]:
    """What was seen once a process had run so long."""
    return [sample for sample in samples if sample.seconds >= seconds]


def growth(samples: list[Sample]) -> float | None:
    """MiB per hour by which resident memory grows, least squares; None: too few samples."""
    if len(samples) < 10:
        return None
    hours = [sample.seconds / 3600 for sample in samples]
    mean_hours, mean_mib = sum(hours) / len(hours), sum(s.mib for s in samples) / len(samples)
    spread = sum((hour - mean_hours) ** 2 for hour in hours)
    joint = sum((h - mean_hours) * (s.mib - mean_mib) for h, s in zip(hours, samples, strict=True))
    return joint / spread
