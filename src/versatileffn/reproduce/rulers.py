"""Does an arm pay: at equal tokens, at equal executed FLOPs, at equal time, by its curriculum?

Dense models of several widths and budgets are the rulers. The rules are those of
`results/language/criterion.md`.
"""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from versatileffn.reproduce.arms import THE_BASE
from versatileffn.reproduce.results import BASE, Loss, Row, adjust, difference

LEVEL, LEAST_SEEDS = 0.05, 3
QUESTIONS = {
    "tokens": "Equal tokens",
    "flops": "Equal executed FLOPs",
    "time": "Equal training time",
    "curriculum": "With and without the loop curriculum",
}
SIZES = ("width", "budget")


def comparisons(rows: Sequence[Row], arms: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Every tested arm against every ruler, with a verdict.

    Args:
        rows: all models of all seeds.
        arms: the protocol's, as its record in `results.json` holds them.

    Returns:
        JSON-able records: `question` (a key of `QUESTIONS`), `phase`, `arm`, `title`, `difference`
        as in the summary, Holm's correction over one question of one phase, and `verdict`: `lower`,
        `higher`, `none` or `undecided` (too few seeds). None at all where there is no ruler.
    """
    known = {arm["name"]: arm for arm in (THE_BASE.to_dict(), *arms)}
    dense = {name for name, arm in known.items() if arm["ffn"]["variant"] == "dense"}
    if dense <= {BASE, *(row.control for row in rows)}:
        return []
    lab = _Lab([row for row in rows if row.after and row.arm in known], known, dense)
    found: list[dict[str, Any]] = []
    for control in dict.fromkeys(row.control for row in lab.rows if row.arm not in dense):
        phase = "from scratch" if control == BASE else "continued"
        tested = [n for n in known if n not in dense and lab.control.get(n) == control]
        asked: dict[str, Callable[[Row], Loss | None]] = {
            "tokens": lambda row: lab.loss(row.control, row.seed),
            "flops": lambda row: lab.on_ruler(row, "flops_executed"),
        }
        if control == BASE:
            asked["time"] = lambda row: lab.on_ruler(row, "cpu_seconds")
        for question, ruler in asked.items():
            found += _family(question, phase, tested, lab, ruler)
    taught = [name for name in known if lab.untaught(name)]
    found += _family("curriculum", "all", taught, lab, lab.without_curriculum)
    return found


class _Lab:
    """The models at hand.

    Args:
        rows: those that are finished.
        known: the arms' records by name.
        dense: names of those that are dense.
    """

    def __init__(self, rows: list[Row], known: Mapping[str, Any], dense: set[str]) -> None:
        self.rows, self.known, self.dense = rows, known, dense
        self.control = {row.arm: row.control for row in rows}
        self._losses = {(row.arm, row.seed): row.after for row in rows}

    def loss(self, arm: str, seed: int) -> Loss | None:
        """Of one model."""
        return self._losses.get((arm, seed))

    def on_ruler(self, row: Row, measure: str) -> Loss | None:
        """What a dense model of the row's seed and phase would reach at the row's `measure`."""
        key = "budget" if measure == "cpu_seconds" else "width"  # what this ruler's models vary
        points = {
            math.log(getattr(other, measure)): other.after
            for other in self.rows
            if other.arm in self._rulers(row.control, key)
            and other.seed == row.seed
            and other.after is not None
            and getattr(other, measure)
        }
        here = getattr(row, measure)
        return _between(points, math.log(here)) if here and len(points) > 1 else None

    def _rulers(self, control: str, key: str) -> set[str]:
        """Dense models of one phase that differ from its control in nothing but `key`."""
        mine = {n for n in self.dense - {BASE} if self.control.get(n) == control} | {control}
        return {n for n in mine if math.prod(self.known[n][k] for k in SIZES) == self.known[n][key]}

    def untaught(self, name: str) -> str | None:
        """The arm that is the same without further keys of its training."""
        mine = self.known[name]
        if not mine["optim"]:
            return None
        same = ("ffn", "start", "width", "budget")
        others = (n for n, a in self.known.items() if all(a[key] == mine[key] for key in same))
        return next((n for n in others if not self.known[n]["optim"]), None)

    def without_curriculum(self, row: Row) -> Loss | None:
        """The same arm of the same seed without it."""
        other = self.untaught(row.arm)
        return self.loss(other, row.seed) if other else None


def _between(points: Mapping[float, Loss], x: float) -> Loss:
    """The line through some losses, document by document; flat beyond its ends."""
    places = sorted(points)
    losses = [points[place] for place in places]

    def at(values: Sequence[float]) -> float:
        return float(np.interp(x, places, values))

    return Loss(
        at([loss.nats_per_token for loss in losses]),
        at([loss.bits_per_byte for loss in losses]),
        losses[0].tokens,
        losses[0].document_tokens,
        [at(nats) for nats in zip(*(loss.document_nats for loss in losses), strict=True)],
    )


def _family(
    question: str, phase: str, arms: Sequence[str], lab: _Lab, ruler: Callable[[Row], Loss | None]
) -> Iterator[dict[str, Any]]:
    """One question to some arms, corrected for how many they are."""
    found: list[dict[str, Any]] = []
    for name in arms:
        mine = [row for row in lab.rows if row.arm == name]
        pairs = [(row.after, its) for row in mine if row.after and (its := ruler(row))]
        if pairs:
            title = mine[0].title
            found.append({"arm": name, "title": title, "difference": difference(pairs)})
    adjust([record["difference"] for record in found])
    for record in found:
        yield {
            "question": question,
            "phase": phase,
            **record,
            "verdict": verdict(record["difference"]),
        }


def verdict(found: Mapping[str, Any]) -> str:
    """`lower`, `higher`, `none` (no difference shown) or `undecided` (too few seeds)."""
    if found["n"] < LEAST_SEEDS:
        return "undecided"
    small = found["document_error"] and abs(found["mean"]) < 2 * found["document_error"]
    if found["p_holm"] >= LEVEL or small:
        return "none"
    return "lower" if found["mean"] < 0 else "higher"
