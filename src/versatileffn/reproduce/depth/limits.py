"""Two tasks in the same form where iterating isn't the point: facts, and an amount never seen.

Legend: N questions.
"""

from dataclasses import dataclass

import numpy as np

from versatileffn.reproduce.depth.task import TEST, TRAINING, DepthTask


@dataclass(frozen=True)
class FactsTask(DepthTask):
    """Facts to be stored: the answer to each k and state was drawn, and nothing leads to it.

    There is nothing to generalize, so one is asked what one was trained on.

    Args:
        known: of how many states.
    """

    known: int = 320

    def after(self) -> np.ndarray:
        """The answer to each question, [most + 1, states]; the same for all seeds."""
        drawn = np.random.default_rng(112).integers(self.states, size=(self.most + 1, self.states))
        return drawn.astype(np.int64)

    def part(self) -> np.ndarray:
        """The first states belong to training, the others to nothing, [states]."""
        return np.where(np.arange(self.states) < self.known, TRAINING, TEST)

    def held_out(self, part: int) -> np.ndarray:
        """Every question there is, [N, 3], sorted by k."""
        return super().held_out(TRAINING)


@dataclass(frozen=True)
class UnseenTask(DepthTask):
    """Rule 110, but the largest k is asked in tests only: each step is known, so many are new."""

    def stream(self, count: int, seed: int, opening: float | None) -> np.ndarray:
        """Questions in the order of training, [count, 3], of every k but the largest."""
        return DepthTask(self.bits, self.most - 1).stream(count, seed, opening)
