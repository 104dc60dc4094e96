"""What a reproduction measured: the records behind `results.json`, and their statistics."""

import dataclasses
import math
import statistics
from dataclasses import dataclass
from typing import Any

CONTROL = "dense"  # the dense model continued on the same data: the paper's 1-loop
BASE = "base"
FORMAT = 1

# Two-sided 95 % points of Student's t by degrees of freedom (any table of the distribution).
T_95 = {
    1: 12.706, 2: 4.303, 3: 3.182, 4: 2.776, 5: 2.571, 6: 2.447, 7: 2.365, 8: 2.306, 9: 2.262,
    10: 2.228, 11: 2.201, 12: 2.179, 13: 2.160, 14: 2.145, 15: 2.131, 16: 2.120, 17: 2.110,
    18: 2.101, 19: 2.093, 20: 2.086, 21: 2.080, 22: 2.074, 23: 2.069, 24: 2.064, 25: 2.060,
    26: 2.056, 27: 2.052, 28: 2.048, 29: 2.045, 30: 2.042,
}  # fmt: skip


@dataclass(frozen=True)
class Loss:
    """Held-out loss of one model."""

    nats_per_token: float
    bits_per_byte: float
    tokens: int


@dataclass(frozen=True)
class Layer:
    """Where one layer spends its loops, over held-out tokens.

    Args:
        mean_loops: mean loops per token.
        loop_share: share of tokens for each loop count, from 1 to L.
        mean_lam: mean λ, the weight of the width pathway.
        expert_load: share of the routed slots that each expert gets, or None without a router.
    """

    mean_loops: float | None
    loop_share: list[float] | None
    mean_lam: float | None
    expert_load: list[float] | None


@dataclass(frozen=True)
class Row:
    """One model of one seed.

    Args:
        arm: its name in the protocol; `base` for the model that all others start from.
        parameters: of the whole model.
        flops_paper: FFN FLOPs per token, the paper's accounting.
        flops_ours: FFN FLOPs per token, counting only what has to be multiplied.
        flops_executed: FFN matrix-product FLOPs per token counted in a real forward pass.
        flops_controller: FLOPs per token of routers and loop predictors, in no other count.
        before: right after conversion, before training; None for the base.
        after: at the end of training.
        tokens_per_second: of training, evaluation excluded.
        curve: held-out loss along training as (tokens seen in this phase, nats per token).
        layers: one per layer; empty for models that decide nothing per token.
    """

    arm: str
    title: str
    seed: int
    parameters: int
    flops_paper: float
    flops_ours: float
    flops_executed: float
    flops_controller: float
    before: Loss | None
    after: Loss
    tokens_per_second: float | None
    curve: list[tuple[int, float]]
    mean_loops: float | None
    share_below_max: float | None
    layers: list[Layer]


@dataclass(frozen=True)
class Interval:
    """A mean over seeds; the standard error and the 95 % t-interval need at least two."""

    mean: float
    n: int
    standard_error: float | None
    low: float | None
    high: float | None


def interval(values: list[float]) -> Interval:
    """Mean, standard error and 95 % t-interval of values that are independent of each other."""
    mean, n = statistics.fmean(values), len(values)
    if n < 2:
        return Interval(mean, n, None, None, None)
    error = statistics.stdev(values) / math.sqrt(n)
    half = T_95.get(n - 1, 2.042) * error  # beyond 30 degrees of freedom: a little too wide
    return Interval(mean, n, error, mean - half, mean + half)


def summarize(rows: list[Row]) -> list[dict[str, Any]]:
    """One record per arm: means over the seeds, and paired differences to the control.

    Pairing is by seed: an arm and its control share the base model and the order of the data.

    Args:
        rows: all models of all seeds.

    Returns:
        Per arm, in the order of the rows: JSON-able means and intervals, `difference` being the
        held-out loss minus that of the dense model continued, in nats per token.
    """
    control = {row.seed: row.after.nats_per_token for row in rows if row.arm == CONTROL}
    summary = []
    for arm in dict.fromkeys(row.arm for row in rows):
        mine = [row for row in rows if row.arm == arm]
        paired = [r.after.nats_per_token - control[r.seed] for r in mine if r.seed in control]
        summary.append(
            {
                "arm": arm,
                "title": mine[0].title,
                "parameters": mine[0].parameters,
                "nats_per_token": _json(interval([r.after.nats_per_token for r in mine])),
                "bits_per_byte": _json(interval([r.after.bits_per_byte for r in mine])),
                "nats_before": _mean([r.before and r.before.nats_per_token for r in mine]),
                "difference": _json(interval(paired)) if paired and arm != CONTROL else None,
                "flops_paper": _mean([r.flops_paper for r in mine]),
                "flops_ours": _mean([r.flops_ours for r in mine]),
                "flops_executed": _mean([r.flops_executed for r in mine]),
                "flops_controller": _mean([r.flops_controller for r in mine]),
                "tokens_per_second": _mean([r.tokens_per_second for r in mine]),
                "mean_loops": _mean([r.mean_loops for r in mine]),
            }
        )
    return summary


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
    return Row(
        **{
            **data,
            "before": Loss(**data["before"]) if data["before"] else None,
            "after": Loss(**data["after"]),
            "curve": [(int(tokens), float(loss)) for tokens, loss in data["curve"]],
            "layers": [Layer(**layer) for layer in data["layers"]],
        }
    )


def _json(value: Interval) -> dict[str, Any]:
    return finite(value)


def _mean(values: list[Any]) -> float | None:
    known = [value for value in values if value is not None]
    return statistics.fmean(known) if known else None
