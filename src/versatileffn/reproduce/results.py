"""What a reproduction measured: the records behind `results.json`, and their summary."""

import dataclasses
import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from pydantic import TypeAdapter

from versatileffn.evaluation.loops import LayerUse
from versatileffn.reproduce.statistics import clustered_error, holm, interval

CONTROL = "dense"  # the dense model continued on the same data: the paper's 1-loop
BASE = "base"
FORMAT = 2


@dataclass(frozen=True)
class Loss:
    """Loss of one model over the held-out split.

    Args:
        nats_per_token: mean over the predicted tokens.
        bits_per_byte: the same per byte of the text that these very tokens stand for.
        tokens: how many were predicted.
        document_tokens: how many of them each document has.
        document_nats: what they sum up to, nats per document.
    """

    nats_per_token: float
    bits_per_byte: float
    tokens: int
    document_tokens: list[int] = field(default_factory=list)
    document_nats: list[float] = field(default_factory=list)


@dataclass(frozen=True)
class Row:
    """One model of one seed.

    Args:
        arm: its name in the protocol; `base` for the model that all others start from.
        before: held-out nats per token right after conversion, before training; None for the base.
        curve: held-out loss along training as (tokens seen in this phase, nats per token).
        diverged: at which step and why, or None; of a model that diverged, nothing below is known.
        after: at the end of training.
        parameters: of the whole model.
        flops_paper: FFN FLOPs per token, the paper's accounting.
        flops_ours: FFN FLOPs per token, counting only what has to be multiplied.
        flops_executed: FFN matrix-product FLOPs per token counted in a real forward pass.
        flops_controller: FLOPs per token of routers and loop predictors, in no other count.
        tokens_per_second: of training, evaluation excluded.
        layers: one per layer; empty for models that decide nothing per token.
        control: the arm that it is compared with.
        cpu_seconds: of its training, evaluations included; None where it was resumed.
        tasks: share of right answers, 0 to 1, by task and their `mean`; empty where none was asked.
        capped: held-out nats per token by the most loops of every token; empty where not asked.
    """

    arm: str
    title: str
    seed: int
    before: float | None
    curve: list[tuple[int, float]]
    diverged: str | None = None
    after: Loss | None = None
    parameters: int | None = None
    flops_paper: float | None = None
    flops_ours: float | None = None
    flops_executed: float | None = None
    flops_controller: float | None = None
    tokens_per_second: float | None = None
    mean_loops: float | None = None
    share_below_max: float | None = None
    layers: list[LayerUse] = field(default_factory=list)
    control: str = CONTROL
    cpu_seconds: float | None = None
    tasks: dict[str, float] = field(default_factory=dict)
    capped: dict[str, float] = field(default_factory=dict)


MEANS = ("parameters", "flops_paper", "flops_ours", "flops_executed", "flops_controller",
         "tokens_per_second", "mean_loops")  # fmt: skip


def summarize(rows: list[Row]) -> list[dict[str, Any]]:
    """One record per arm: means over the seeds, and paired differences to the control.

    Pairing is by seed (an arm and its control share the order of the data, and the base model where
    they continue one) and by document (they are measured on the same text). Models that diverged
    are left out and named.

    Args:
        rows: all models of all seeds.

    Returns:
        Per arm, in the order of the rows, JSON-able: means; and `difference`, the held-out loss
        minus that of its control, in nats per token, with the t-interval over the seeds, its
        p-value as it is and after Holm's correction for all arms with this control (`p_holm`), and
        the standard error over documents (`document_error`).
    """
    finished = [row for row in rows if row.after is not None]
    controls = {(row.arm, row.seed): row.after for row in finished}
    summary: list[dict[str, Any]] = []
    for arm in dict.fromkeys(row.arm for row in rows):
        mine = [row for row in finished if row.arm == arm]
        losses = [row.after for row in mine if row.after is not None]
        theirs = [controls.get((row.control, row.seed)) for row in mine]
        paired = [(r.after, its) for r, its in zip(mine, theirs, strict=True) if r.after and its]
        means = {name: _mean([getattr(row, name) for row in mine]) for name in MEANS}
        summary.append(
            {
                "arm": arm,
                "title": next(row.title for row in rows if row.arm == arm),
                "diverged": [row.seed for row in rows if row.arm == arm and row.diverged],
                "nats_per_token": _mean([loss.nats_per_token for loss in losses]),
                "bits_per_byte": _mean([loss.bits_per_byte for loss in losses]),
                "nats_before": _mean([row.before for row in rows if row.arm == arm]),
                "control": next(row.control for row in rows if row.arm == arm),
                "difference": difference(paired) if paired and arm != CONTROL else None,
                **means,
                "tasks": _mean_scores(mine),
            }
        )
    for control in dict.fromkeys(record["control"] for record in summary):
        adjust([r["difference"] for r in summary if r["control"] == control and r["difference"]])
    return summary


def adjust(family: Sequence[dict[str, Any]]) -> None:
    """Write Holm's correction into the differences of one family, those that have a p-value."""
    tested = [each for each in family if each["p"] is not None]
    for each, p in zip(tested, holm([each["p"] for each in tested]), strict=True):
        each["p_holm"] = p


def difference(paired: Sequence[tuple[Loss, Loss]]) -> dict[str, Any]:
    """An arm against another, pair by pair of the same seed."""
    by_seed = [mine.nats_per_token - its.nats_per_token for mine, its in paired]
    by_document = np.mean(
        [np.subtract(mine.document_nats, its.document_nats) for mine, its in paired], axis=0
    )
    sizes = paired[0][0].document_tokens
    return finite(
        {
            **dataclasses.asdict(interval(by_seed)),
            "p_holm": None,
            "documents": len(sizes),
            "document_error": clustered_error(by_document, sizes),
        }
    )


def finite(value: Any) -> Any:
    """The same data with infinities and NaN as None, so that it is strict JSON."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return finite(dataclasses.asdict(value))
    if isinstance(value, dict):
        return {str(key): finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [finite(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value


def row_from_json(data: dict[str, Any]) -> Row:
    """The inverse of `finite(row)`."""
    return TypeAdapter(Row).validate_python(data)


def _mean_scores(rows: Sequence[Row]) -> dict[str, float]:
    """By task, over the models that were scored."""
    scored = [row.tasks for row in rows if row.tasks]
    names = scored[0] if scored else {}
    return {name: statistics.fmean(tasks[name] for tasks in scored) for name in names}


def _mean(values: list[Any]) -> float | None:
    known = [value for value in values if value is not None]
    return statistics.fmean(known) if known else None
