"""What differences can carry: intervals over seeds, errors over documents, many comparisons."""

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.stats import t as student_t


@dataclass(frozen=True)
class Interval:
    """A mean of independent values; all but the mean needs at least two.

    Args:
        mean: of the values.
        n: how many there are.
        standard_error: of the mean.
        low, high: 95 % t-interval.
        p: two-sided t-test of the mean against zero.
    """

    mean: float
    n: int
    standard_error: float | None = None
    low: float | None = None
    high: float | None = None
    p: float | None = None


def interval(values: Sequence[float]) -> Interval:
    """Mean, standard error, 95 % t-interval and t-test of values independent of each other."""
    mean, n = statistics.fmean(values), len(values)
    if n < 2:
        return Interval(mean, n)
    error = statistics.stdev(values) / math.sqrt(n)
    half = float(student_t.ppf(0.975, n - 1)) * error
    if error:
        p = 2 * float(student_t.sf(abs(mean) / error, n - 1))
    else:  # the values are all the same
        p = 0.0 if mean else 1.0
    return Interval(mean, n, error, mean - half, mean + half, p)


def clustered_error(totals: Sequence[float], sizes: Sequence[int]) -> float | None:
    """Standard error of Σ totals / Σ sizes where whole clusters were drawn, not their members.

    Source: the linearized variance of a ratio, with G/(G − 1) for G clusters. Tokens of a document
    resemble each other, so that it counts as one draw however long it is.

    Args:
        totals: of each document, e.g. the summed difference of two models' losses (paired).
        sizes: tokens of each.

    Returns:
        The error in the unit of the ratio; None for fewer than two documents.
    """
    total, size = np.asarray(totals, dtype=float), np.asarray(sizes, dtype=float)
    count = len(total)
    if count < 2:
        return None
    residual = total - total.sum() / size.sum() * size
    return float(np.sqrt(count / (count - 1) * np.square(residual).sum()) / size.sum())


def holm(p_values: Sequence[float]) -> list[float]:
    """Holm's adjusted p-values: among all of them, one false rejection at most with probability α.

    Source: Holm 1979; needs no independence.
    """
    count, highest = len(p_values), 0.0
    adjusted = [0.0] * count
    for rank, index in enumerate(sorted(range(count), key=p_values.__getitem__)):
        highest = max(highest, min(1.0, (count - rank) * p_values[index]))
        adjusted[index] = highest
    return adjusted
