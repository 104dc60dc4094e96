"""What is concluded from the depth experiment's rows."""

from typing import Any

import pytest

from versatileffn.errors import ConfigError
from versatileffn.reproduce.depth.protocol import (
    ARMS,
    DENSE_LARGE,
    DENSE_LARGE_K,
    FURTHER_ARMS,
    PAPER,
    PAPER_BOTH,
    TOLD,
    depth_protocol,
)
from versatileffn.reproduce.depth.results import AGAINST, COMPARISONS, summarize

SEEDS = range(6)


def row(arm: str, seed: int, exact: float, correlation: float | None = None) -> dict[str, Any]:
    return {
        "arm": arm, "title": arm, "seed": seed, "rate": 4e-3, "course": [],
        "exact": [exact] * 5, "loops": [1.0] * 5, "rank_correlation": correlation, "caps": None,
        "gains": {}, "parameters": 100, "flops_executed": 10.0, "flops_controller": 0.0,
    }  # fmt: skip


def rows(**means: float) -> list[dict[str, Any]]:
    """Arms (with - for _) whose seeds lie around a mean, not all by the same amounts."""
    shifts = [0.01, -0.02, 0.015, 0.0, -0.01, 0.005]
    found = []
    for number, (name, mean) in enumerate(means.items()):
        for seed in SEEDS:
            shift = shifts[(seed + number) % len(shifts)]
            found.append(row(name.replace("_", "-"), seed, mean + shift, 0.8 + shift))
    return found


def test_the_criterion_asks_for_both_large_dense_models() -> None:
    apart = {PAPER: 0.5, TOLD: 0.995, PAPER_BOTH: 0.98}
    names = {name.replace("-", "_"): mean for name, mean in apart.items()}
    won = summarize(rows(**names, dense_4f=0.8, dense_4f_k=0.7))["verdict"]
    assert won == {
        "reuse_pays": True,
        "loops_follow": True,
        "mechanism_works": True,
        "fails_without": True,
    }
    even = summarize(rows(**names, dense_4f=0.8, dense_4f_k=0.978))["verdict"]
    assert even["reuse_pays"] is False
    worse = summarize(rows(**{**names, "paper": 0.994}, dense_4f=0.999, dense_4f_k=0.7))["verdict"]
    assert worse["reuse_pays"] is False
    assert worse["fails_without"] is False


def test_holm_is_over_what_was_compared() -> None:
    names = {"paper_both": 0.9, "dense_4f": 0.8, "dense_4f_k": 0.7}
    compared = summarize(rows(**names))["comparisons"]
    pairs = [(PAPER_BOTH, DENSE_LARGE), (PAPER_BOTH, DENSE_LARGE_K)]
    assert [(each["first"], each["second"]) for each in compared] == pairs
    smallest = min(compared, key=lambda each: each["p"])
    assert smallest["p_holm"] == pytest.approx(2 * smallest["p"])
    assert compared[0]["mean"] == pytest.approx(0.1)


def test_another_arm_can_be_judged() -> None:
    mine = rows(paper=0.99, paper_both=0.7, dense_4f=0.8, dense_4f_k=0.75)
    assert summarize(mine)["verdict"]["reuse_pays"] is False
    assert summarize(mine, judged=PAPER)["verdict"]["reuse_pays"] is True
    confirm, tiny = depth_protocol("confirm"), depth_protocol("tiny")
    assert confirm.judged == PAPER
    assert confirm.first_seed >= 10  # none of the seeds that suggested it
    assert "`paper` has a higher" in confirm.to_dict()["criterion"]
    assert "`paper-both` has a higher" in tiny.to_dict()["criterion"]


def test_constant_loops_count_as_following_nothing() -> None:
    mine = [row(PAPER_BOTH, seed, 0.9, 1.0 if seed else None) for seed in SEEDS]
    summary = summarize(mine)
    assert summary["arms"][0]["rank_correlation"]["mean"] == pytest.approx(5 / 6)
    assert (
        summarize([{**each, "rank_correlation": None} for each in mine])["arms"][0][
            "rank_correlation"
        ]
        is None
    )


def test_what_diverged_is_named_and_left_out() -> None:
    mine = [row("dense", seed, 0.5) for seed in SEEDS]
    gone = {"arm": "dense", "title": "dense", "seed": 9, "rate": 4e-3, "diverged": "step 3: nan"}
    [arm] = summarize([*mine, gone])["arms"]
    assert arm["diverged"] == [9]
    assert arm["mean_exact"]["n"] == 6
    assert summarize([gone])["arms"][0]["mean_exact"] is None


def test_every_comparison_is_of_declared_arms() -> None:
    declared = [arm.name for arm in (*ARMS, *FURTHER_ARMS)]
    assert {name for pair in COMPARISONS for name in pair} <= set(declared)
    assert set(AGAINST) <= set(declared)
    assert len(set(declared)) == len(declared)
    assert [arm.name for arm in depth_protocol("tiny", ["all"]).arms] == declared
    assert [arm.name for arm in depth_protocol("smoke", ["4-loop", "dense"]).arms] == [
        "dense",
        "4-loop",
    ]


def test_what_isnt_there_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"arm 'moe' is unknown for this task: choose from \['de"):
        depth_protocol("tiny", ["moe"])
    with pytest.raises(ConfigError, match=r"scale='tiny-epoch' is unknown for this task"):
        depth_protocol("tiny-epoch")
