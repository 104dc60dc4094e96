"""Times of several callables, taken in turns in one process, and their ratios by round.

What disturbs a machine lasts longer than one call, so callables that are compared run right after
each other, and their ratio is the median of the ratios of each round.
"""

import gc
import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch


@dataclass(frozen=True)
class Budget:
    """When to stop: after so many rounds, or so many seconds but never before `least` rounds."""

    rounds: int = 25
    seconds: float = 8.0
    least: int = 7
    warmup: int = 1


class Spread(NamedTuple):
    """Median and quartiles."""

    median: float
    low: float
    high: float


def spread(values: list[float]) -> Spread:
    """Median and quartiles of at least one value."""
    if len(values) == 1:
        return Spread(values[0], values[0], values[0])
    low, median, high = statistics.quantiles(values, n=4, method="inclusive")
    return Spread(median, low, high)


@dataclass(frozen=True)
class Timings:
    """Seconds of every round, by name; round i of one name ran beside round i of the others."""

    seconds: dict[str, list[float]]

    def ratio(self, over: str, under: str, factor: float = 1.0) -> Spread:
        """Spread of seconds[over] / (factor · seconds[under]) over the rounds."""
        pairs = zip(self.seconds[over], self.seconds[under], strict=True)
        return spread([a / (factor * b) for a, b in pairs])

    def to_dict(self) -> dict[str, Any]:
        """Medians and quartiles in seconds, and the number of rounds, by name."""
        return {
            name: {**spread(values)._asdict(), "rounds": len(values)}
            for name, values in self.seconds.items()
        }


def measure(
    subjects: Mapping[str, Callable[[], object]],
    budget: Budget,
    synchronize: Callable[[], object] = lambda: None,
    clock: Callable[[], float] = time.perf_counter,
) -> Timings:
    """Time callables in turns.

    Every round runs all of them once, each round beginning with the next one, so that none always
    follows the same other.

    Args:
        subjects: what to time, by name.
        budget: when to stop.
        synchronize: waits for the device; called before each reading of the clock.
        clock: seconds.
    """
    names = list(subjects)
    seconds: dict[str, list[float]] = {name: [] for name in names}
    for _ in range(budget.warmup):
        for name in names:
            subjects[name]()
    gc.collect()
    started = clock()
    for done in range(budget.rounds):
        if done >= budget.least and clock() - started >= budget.seconds:
            break
        first = done % len(names)
        for name in names[first:] + names[:first]:
            synchronize()
            before = clock()
            subjects[name]()
            synchronize()
            seconds[name].append(clock() - before)
    return Timings(seconds)


def waits_for(device: str) -> Callable[[], object]:
    """What makes the host wait for the device."""
    if torch.device(device).type == "cuda":
        return torch.cuda.synchronize
    return lambda: None
