"""The goals: what is held to which number, and whether it was reached."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any


@dataclass(frozen=True)
class Goal:
    """One goal.

    Args:
        number: by which documents refer to it.
        title: what is measured.
        at_most: values must not exceed the limit; else they must not fall below it.
        limit: the number to reach.
        cases: patterns of the names of all cases that are held to it.
        path: where a case has the value, key by key.
    """

    number: int
    title: str
    at_most: bool
    limit: float
    cases: tuple[str, ...]
    path: tuple[str, ...]

    def reached(self, value: float) -> bool:
        """Whether one value keeps to the limit."""
        return value <= self.limit if self.at_most else value >= self.limit

    def values(self, cases: Mapping[str, Any]) -> Iterator[tuple[str, dict[str, float]]]:
        """What was measured, by the cases' names: a spread, or a `median` alone."""
        for name, case in cases.items():
            if not any(fnmatchcase(name, pattern) for pattern in self.cases):
                continue
            value = case["found"]
            for key in self.path:
                value = value[key]
            if not isinstance(value, dict):
                value = {"median": value / case["inputs"]["settings"]["d_model"]}
            yield name, value

    def cells(self, cases: Mapping[str, Any]) -> list[str]:
        """A row: the goal, the value furthest on the wrong side, how many kept to it."""
        limit = f"{'≤' if self.at_most else '≥'} {self.limit:g}"
        found = dict(self.values(cases))
        if not found:
            return [str(self.number), self.title, limit, *"––––", "not measured"]
        choose = max if self.at_most else min
        worst = choose(found, key=lambda name: found[name]["median"])
        value = found[worst]
        quartiles = f"{value['low']:.3f} to {value['high']:.3f}" if "low" in value else "–"
        kept = sum(self.reached(value["median"]) for value in found.values())
        verdict = "met" if kept == len(found) else "**missed**"
        return [str(self.number), self.title, limit, f"{value['median']:.3f}", quartiles, worst,
                f"{kept} of {len(found)}", verdict]  # fmt: skip


SLOW, STEP = ("ratios", "straightforward/packed"), ("ratios", "straightforward/recompute")
GOALS = [
    Goal(1, "extra time of the width pathway / dense FFN", True, 0.03,
         ("width/d1024/*",), ("extra",)),
    Goal(2, "inference / (E[ℓ̂] × dense)", True, 1.05,
         ("inference/d1024/*",), ("ratios", "packed/dense")),
    Goal(3, "straightforward / ours, inference, E = 2.5", False, 1.65,
         ("inference/d1024/*/2.5",), SLOW),
    Goal(3, "straightforward / ours, inference, E = 1.4", False, 2.9,
         ("inference/d1024/*/1.4",), SLOW),
    Goal(4, "straightforward / ours, training step, E = 2.5", False, 1.4,
         ("training/d1024/*/2.5", "training/d512/*/bfloat16/2.5"), SLOW),
    Goal(4, "straightforward / ours, training step, E = 1.4", False, 1.85,
         ("training/d1024/*/1.4", "training/d512/*/bfloat16/1.4"), SLOW),
    Goal(5, "recompute mode: saved values / (D × tokens)", True, 4.0,
         ("memory/*",), ("memory", "recompute", "saved_values_per_token")),
    Goal(5, "straightforward / recompute mode, training step, E = 2.5", False, 1.2,
         ("training/d1024/*/2.5",), STEP),
    Goal(6, "batch-1 decode, 4 loops / 1 loop, D = 512, bf16", True, 2.0,
         ("decode/d512/b1/bfloat16",), ("ratios", "4 loops/1 loop")),
    Goal(7, "whole-model training, FLOPs a second / the dense model's", False, 0.95,
         ("model/training/*",), ("rate_per_flop", "auto")),
]  # fmt: skip
