"""What the depth experiment comes to: means over seeds, paired differences, and the verdict."""

import dataclasses
import statistics
from collections.abc import Sequence
from typing import Any

import numpy as np

from versatileffn.reproduce.depth.protocol import (
    DENSE,
    DENSE_LARGE,
    DENSE_LARGE_K,
    PAPER,
    PAPER_BOTH,
    TOLD,
)
from versatileffn.reproduce.statistics import holm, interval

LEVEL = 0.05
AGAINST = (DENSE_LARGE, DENSE_LARGE_K, DENSE)
"""What the judged arm is tested against."""
COMPARISONS = (
    (PAPER_BOTH, PAPER),
    (PAPER, TOLD),
    (TOLD, DENSE_LARGE),
    ("learned-both", DENSE_LARGE_K),
)
"""What else is tested, the first against the second; Holm's correction is over all of it."""

Row = dict[str, Any]


def summarize(rows: Sequence[Row], judged: str = PAPER_BOTH) -> dict[str, Any]:
    """Means by arm, the comparisons, and what the criterion says.

    Args:
        rows: one for each arm and seed; of a run that diverged, `exact` is missing.
        judged: the arm that the criterion is about.
    """
    arms = {arm: [row for row in rows if row["arm"] == arm] for arm in _names(rows)}
    pairs = [*((judged, other) for other in AGAINST), *COMPARISONS]
    compared = [each for each in (_compare(arms, *pair) for pair in pairs) if each]
    tested = [each for each in compared if each["p"] is not None]
    for each, p in zip(tested, holm([each["p"] for each in tested]), strict=True):
        each["p_holm"] = p
    summary = [_arm(mine) for mine in arms.values()]
    return {
        "arms": summary,
        "comparisons": compared,
        "verdict": _verdict(summary, compared, judged),
    }


def mean_exact(row: Row) -> float:
    """Exact match, a mean over k."""
    return statistics.fmean(row["exact"])


def _names(rows: Sequence[Row]) -> list[str]:
    return list(dict.fromkeys(row["arm"] for row in rows))


def _arm(mine: Sequence[Row]) -> Row:
    """Means over the seeds of one arm, with intervals of the two numbers that are judged."""
    ended = [row for row in mine if "exact" in row]
    correlations = [row["rank_correlation"] for row in ended]
    known = [value for value in correlations if value is not None]
    return {
        "arm": mine[0]["arm"],
        "title": mine[0]["title"],
        "diverged": [row["seed"] for row in mine if "exact" not in row],
        "rate": mine[0]["rate"],
        "mean_exact": _interval([mean_exact(row) for row in ended]),
        "exact": _over_seeds([row["exact"] for row in ended]),
        "loops": _over_seeds([row["loops"] for row in ended if row["loops"]]),
        # Where all tokens take the same loops there is no rank; they don't follow anything.
        "rank_correlation": _interval([value or 0.0 for value in correlations]) if known else None,
        "caps": {
            cap: _over_seeds([row["caps"][cap] for row in ended])
            for cap in (ended[0]["caps"] or {} if ended else {})
        },
        "gains": {
            name: statistics.fmean(row["gains"][name] for row in ended)
            for name in (ended[0]["gains"] if ended else {})
        },
        **{
            name: statistics.fmean(row[name] for row in ended) if ended else None
            for name in ("parameters", "flops_executed", "flops_controller")
        },
        **{name: _known([row.get(name) for row in ended]) for name in ("text_loss", "text_loops")},
    }


def _known(values: Sequence[float | None]) -> dict[str, Any] | None:
    """Mean and interval of what every seed has; nothing otherwise."""
    known = [value for value in values if value is not None]
    return _interval(known) if len(known) == len(values) else None


def _interval(values: Sequence[float]) -> dict[str, Any] | None:
    return dataclasses.asdict(interval(values)) if values else None


def _over_seeds(values: Sequence[Sequence[float]]) -> list[float] | None:
    return np.mean(values, axis=0).tolist() if values else None


def _compare(arms: dict[str, list[Row]], first: str, second: str) -> dict[str, Any] | None:
    """Exact match of one arm minus another's, seed by seed; None where they weren't both run."""
    its = {row["seed"]: row for row in arms.get(second, []) if "exact" in row}
    pairs = [(r, its[r["seed"]]) for r in arms.get(first, []) if "exact" in r and r["seed"] in its]
    if not pairs:
        return None
    differences = [mean_exact(mine) - mean_exact(other) for mine, other in pairs]
    found = dataclasses.asdict(interval(differences))
    return {"first": first, "second": second, **found, "p_holm": None}


def _verdict(
    summary: Sequence[Row], compared: Sequence[dict[str, Any]], judged: str
) -> dict[str, bool | None]:
    """The criterion's four statements; None where the arms or seeds for one weren't run."""
    arms = {record["arm"]: record for record in summary}
    pairs = {(each["first"], each["second"]): each for each in compared}

    def higher(first: str, second: str, sign: int = 1) -> bool | None:
        found = pairs.get((first, second))
        if found is None or found["p_holm"] is None:
            return None
        return bool(sign * found["mean"] > 0 and found["p_holm"] < LEVEL)

    larger = [higher(judged, other) for other in (DENSE_LARGE, DENSE_LARGE_K) if other in arms]
    follows = (arms.get(judged) or {}).get("rank_correlation")
    told = (arms.get(TOLD) or {}).get("mean_exact")
    return {
        "reuse_pays": None if None in larger or not larger else all(larger),
        "loops_follow": None
        if follows is None or follows["low"] is None
        else follows["mean"] > 0.5 and follows["low"] > 0,
        "mechanism_works": None if told is None else told["mean"] >= 0.99,
        "fails_without": higher(PAPER, TOLD, -1),
    }
