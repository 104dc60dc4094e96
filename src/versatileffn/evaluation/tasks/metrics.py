"""From log-likelihoods to predictions, scores and their errors."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import NormalDist, fmean, stdev

from versatileffn.evaluation.tasks.catalogue import Task

ACC = "acc"
WITHOUT_SPACE = "len_norm_without_leading_space"
WITH_SPACE = "len_norm_with_leading_space"
METRICS = (ACC, WITHOUT_SPACE, WITH_SPACE)
CONVENTIONS = {
    "paper": "len_norm divides by the characters of the continuation without its leading space, "
    "as the paper's OLMo 0.6 did",
    "olmo_eval": "len_norm divides by all characters of the continuation, its leading space "
    "included, as ai2-olmo-eval 0.9 does",
}
"""The two ways to normalize by length; `acc` is the same in both."""


@dataclass(frozen=True)
class Estimate:
    """A mean over items or tasks.

    Args:
        value: a fraction between 0 and 1, or a difference of two.
        standard_error: of the value over items drawn anew; None for a single item.
    """

    value: float
    standard_error: float | None

    def interval_95(self) -> tuple[float, float] | None:
        """The normal approximation's 95 % interval."""
        if self.standard_error is None:
            return None
        half = NormalDist().inv_cdf(0.975) * self.standard_error
        return self.value - half, self.value + half


def metric_name(task: Task, convention: str) -> str:
    """Which of `METRICS` scores a task under a convention."""
    if task.metric == ACC:
        return ACC
    return {"paper": WITHOUT_SPACE, "olmo_eval": WITH_SPACE}[convention]


def predictions(log_likelihoods: Sequence[float], characters: Sequence[int]) -> dict[str, int]:
    """The choice with the highest value under each metric; the first of equals.

    Source: ai2-olmo-eval's ICLMetric.

    Args:
        log_likelihoods: of each choice's continuation, in nats.
        characters: of each continuation's text, leading space included.
    """
    values = {
        ACC: list(log_likelihoods),
        WITHOUT_SPACE: [_per(s, n - 1) for s, n in zip(log_likelihoods, characters, strict=True)],
        WITH_SPACE: [_per(s, n) for s, n in zip(log_likelihoods, characters, strict=True)],
    }
    return {name: value.index(max(value)) for name, value in values.items()}


def _per(log_likelihood: float, characters: int) -> float:
    """Per character; a text without any can't win."""
    return log_likelihood / characters if characters > 0 else -math.inf


def mean_over_items(values: Sequence[float]) -> Estimate:
    """Mean of independent values and its standard error (with n − 1)."""
    n = len(values)
    return Estimate(fmean(values), stdev(values) / math.sqrt(n) if n > 1 else None)


def mean_over_tasks(estimates: Sequence[Estimate]) -> Estimate:
    """The unweighted mean over tasks; their errors are independent."""
    value = fmean(estimate.value for estimate in estimates)
    errors = [e.standard_error for e in estimates if e.standard_error is not None]
    if len(errors) < len(estimates):
        return Estimate(value, None)
    return Estimate(value, math.hypot(*errors) / len(errors))
