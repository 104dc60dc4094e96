"""The goals: what is held to which number, and whether it was reached."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from versatileffn.bench.results import Results
from versatileffn.bench.suite import REPRODUCTION


@dataclass(frozen=True)
class Row:
    """One measured value under a goal.

    Args:
        case: where it was measured.
        value: the median.
        low, high: its quartiles; None where it is no time.
    """

    case: str
    value: float
    low: float | None = None
    high: float | None = None


@dataclass(frozen=True)
class Goal:
    """One goal with all values that are held to it.

    Args:
        number: as in the issue.
        title: what is measured.
        limit: the number to reach.
        at_most: values must not exceed the limit; else they must not fall below it.
        rows: empty where nothing was measured.
    """

    number: int
    title: str
    limit: float
    at_most: bool
    rows: list[Row]

    @property
    def worst(self) -> Row | None:
        """The value that is furthest on the wrong side."""
        if not self.rows:
            return None
        choose = max if self.at_most else min
        return choose(self.rows, key=lambda row: row.value)

    def reached(self, row: Row) -> bool:
        """Whether one value keeps to the limit."""
        return row.value <= self.limit if self.at_most else row.value >= self.limit

    @property
    def met(self) -> bool | None:
        """Whether all values keep to it; None where nothing was measured."""
        return all(map(self.reached, self.rows)) if self.rows else None


Pick = Callable[[dict[str, Any], dict[str, Any]], Any]


def goals(results: Results) -> list[Goal]:
    """All goals, in order, at the sizes they are stated for."""
    quick = results.content["settings"]["quick"]  # has one tiny size for all

    def rows(kind: str, wanted: Callable[[str, dict[str, Any]], bool], pick: Pick) -> list[Row]:
        return list(_rows(results, kind, wanted, pick))

    def at_large(name: str, settings: dict[str, Any]) -> bool:
        return quick or settings["d_model"] == 1024

    def at_mean(mean: str, small_bf16: bool = False) -> Callable[[str, dict[str, Any]], bool]:
        def wanted(name: str, settings: dict[str, Any]) -> bool:
            also = small_bf16 and settings["dtype"] == "bfloat16"
            return name.endswith(f"/{mean}") and (also or at_large(name, settings))

        return wanted

    def one_token(name: str, settings: dict[str, Any]) -> bool:
        small = quick or settings["d_model"] == 512
        return small and settings["tokens"] == 1 and settings["dtype"] == "bfloat16"

    def trains(name: str, settings: dict[str, Any]) -> bool:
        return settings["work"] == "training" and settings["shape"] != REPRODUCTION

    slow, step = ratio("straightforward/packed"), ratio("straightforward/recompute")
    return [
        Goal(1, "extra time of the width pathway / dense FFN", 0.03, True,
             rows("width", at_large, lambda _, found: found["extra"])),
        Goal(2, "inference / (E[ℓ̂] × dense)", 1.05, True,
             rows("inference", at_large, ratio("packed/dense"))),
        Goal(3, "straightforward / ours, inference, E = 2.5", 1.65, False,
             rows("inference", at_mean("2.5"), slow)),
        Goal(3, "straightforward / ours, inference, E = 1.4", 2.9, False,
             rows("inference", at_mean("1.4"), slow)),
        Goal(4, "straightforward / ours, training step, E = 2.5", 1.4, False,
             rows("training", at_mean("2.5", small_bf16=True), slow)),
        Goal(4, "straightforward / ours, training step, E = 1.4", 1.85, False,
             rows("training", at_mean("1.4", small_bf16=True), slow)),
        Goal(5, "recompute mode: saved values / (D × tokens)", 4.0, True,
             rows("memory", lambda *_: True, _saved)),
        Goal(5, "straightforward / recompute mode, training step, E = 2.5", 1.2, False,
             rows("training", at_mean("2.5"), step)),
        Goal(6, "batch-1 decode, 4 loops / 1 loop, D = 512, bf16", 2.0, True,
             rows("decode", one_token, ratio("4 loops/1 loop"))),
        Goal(7, "whole-model training, FLOPs a second / the dense model's", 0.95, False,
             rows("model", trains, lambda _, found: found["rate_per_flop"].get("auto"))),
    ]  # fmt: skip


def ratio(name: str) -> Pick:
    """Picks one ratio of a case, if the case has it."""
    return lambda _, found: found["ratios"].get(name)


def _saved(settings: dict[str, Any], found: dict[str, Any]) -> float | None:
    saved = found["memory"].get("recompute")
    return saved and saved["saved_values_per_token"] / settings["d_model"]


def _rows(
    results: Results, kind: str, wanted: Callable[[str, dict[str, Any]], bool], pick: Pick
) -> Iterator[Row]:
    for name, (settings, found) in results.found(kind).items():
        value = pick(settings, found) if wanted(name, settings) else None
        if isinstance(value, dict):
            yield Row(name, value["median"], value["low"], value["high"])
        elif value is not None:
            yield Row(name, float(value))


def flops_agree(results: Results) -> tuple[int, int]:
    """How many executions ran exactly the planned FLOPs, and of how many."""
    pairs = [
        (flops["executed"], flops["planned"])
        for kind in ("inference", "training")
        for _, found in results.found(kind).values()
        for flops in found["flops"].values()
    ]
    return sum(executed == planned for executed, planned in pairs), len(pairs)
