"""The tables of docs/measuring.md are what the committed JSON files hold."""

import json
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "docs" / "measuring.md").read_text(encoding="utf-8")
COMMANDS = (ROOT / "docs" / "commands.md").read_text(encoding="utf-8")
SMOL = ROOT / "results" / "smollm2-135m-instruct"


def read(path: Path) -> dict:
    return json.loads(path.read_text(encoding="utf-8"))


def percent(found: dict) -> str:
    return f"{100 * found['score']:.2f} ± {100 * found['standard_error']:.2f}"


def rows_of_scores(results: dict) -> list[str]:
    """The beginnings of the rows: what we measured, without what others did."""
    return [
        f"| {row['title']} | {row['metric']} | {row['items']:,} | {percent(row['paper'])} | "
        f"{percent(row['olmo_eval'])} |"
        for row in results["tasks"].values()
    ] + [
        f"| mean | | | {percent(results['mean']['paper'])} | "
        f"{percent(results['mean']['olmo_eval'])} |"
    ]


def rows_of_speed(speed: dict) -> list[str]:
    return [
        f"| {label} | {row['olmo_requests_per_second']:.1f} | {row['our_requests_per_second']:.1f} "
        f"| {row['ratio']:.1f} |"
        for label, row in (*speed["tasks"].items(), ("all, by their full size", speed["all"]))
    ]


@pytest.mark.parametrize("row", rows_of_scores(read(SMOL / "results.json")))
def test_a_score_is_the_committed_one(row):
    assert row in PAGE


@pytest.mark.parametrize(
    "row", rows_of_speed(read(ROOT / "benchmarks" / "results" / "evaluation_speed.json"))
)
def test_a_rate_is_the_committed_one(row):
    assert row in PAGE


def test_the_page_says_which_library_the_rates_are_of():
    speed = read(ROOT / "benchmarks" / "results" / "evaluation_speed.json")
    assert all(row["onednn"] for row in speed["tasks"].values()) == ("*with* it" in PAGE)


def test_lm_eval_gave_the_same_answers():
    found, ours = read(SMOL / "lm_eval.json"), read(SMOL / "results.json")
    assert found["model_sha256"] == ours["model_sha256"]
    assert ours["tasks"].keys() - found["tasks"].keys() == {"winogrande"}
    for row in found["tasks"].values():
        assert row["differing_predictions"] == {"acc": 0, "acc_norm": 0}
        assert row["largest_relative_difference_of_log_likelihoods"] < 2e-5
        assert f"first {row['items']} items" in PAGE
    assert f"{sum(row['items'] for row in found['tasks'].values()):,} items" in PAGE


def test_what_the_page_says_of_whole_evaluations_is_true():
    results = read(SMOL / "results.json")
    for row in results["tasks"].values():
        assert row["items"] == row["items_in_full"]
        assert row["items_cut"] == 0
    assert results["limit"] is None
    assert f"{results['requests']:,} requests" in PAGE
    both = [
        results["tasks"][label]["all_metrics"]["len_norm_without_leading_space"]["score"]
        for label in ("arc_easy", "arc_challenge")
    ]
    assert f"`len_norm` on both gives {100 * sum(both) / 2:.1f} here" in PAGE
    speed = read(ROOT / "benchmarks" / "results" / "evaluation_speed.json")
    assert speed["all"]["differing_predictions"] == 0
    assert speed["all"]["complete"]
    slowest = min(speed["tasks"].values(), key=lambda row: row["ratio"])
    assert f"{speed['all']['ratio']:.1f} ×" in PAGE
    assert f"{speed['all']['ratio']:.1f} × less time" in COMMANDS
    assert f"PIQA, at {slowest['ratio']:.1f} ×" in PAGE
    assert slowest is speed["tasks"]["piqa"]


def test_the_reused_model_scores_as_the_dense_one():
    comparison = read(SMOL / "comparison.json")
    dense = read(SMOL / "results.json")
    assert comparison["first"]["model_sha256"] == dense["model_sha256"]
    assert comparison["second"]["model_class"] == "VersatileLlamaForCausalLM"
    for label, row in comparison["tasks"].items():
        assert row["items"] == min(2000, dense["tasks"][label]["items"])
        for convention in ("paper", "olmo_eval"):
            found = row[convention]
            assert found["only_first_right"] == found["only_second_right"] == 0
    assert f"{sum(row['items'] for row in comparison['tasks'].values()):,} items" in PAGE
