"""What a budget of loops costs on language: how it is measured, compared and shown."""

import dataclasses
from pathlib import Path
from typing import Any

import pytest

from reproduce.rows import results as made_results
from reproduce.rows import row as made_row
from reproduce.test_steps import SMOKE, tokens  # noqa: F401  # the fixture
from support.models import make_model
from versatileffn.data.packed import PackedDataset
from versatileffn.evaluation.held_out import held_out_loss
from versatileffn.reproduce.budgets import under_budgets
from versatileffn.reproduce.report import write_report
from versatileffn.reproduce.results import Row
from versatileffn.reproduce.steps import Context, capped_losses

RISE = {"1": 0.4, "2": 0.2, "3": 0.0}


def rows(seeds: int) -> list[Row]:
    """`versatile`, whose loss rises under budgets, and another arm, where it rises half as much; by
    a little of its own in each seed."""
    made = []
    for seed in range(seeds):
        own = [0.01, -0.02, 0.015, 0.0][seed % 4]
        for arm, rate, offset in (("versatile", 1.0, 0.0), ("4-loop", 0.5, own)):
            capped = {cap: 3.0 + 0.1 * seed + rate * rise + offset for cap, rise in RISE.items()}
            made.append(dataclasses.replace(made_row(arm, seed, 3.0), capped=capped))
    return [made_row("dense", 0, 3.0), *made]


def test_arms_are_compared_with_the_first_budget_by_budget() -> None:
    found = under_budgets(rows(4))
    assert found is not None
    assert found["reference"] == "versatile"
    reference, other = found["arms"]
    assert reference["difference"] is None
    assert reference["loss"] == pytest.approx({"1": 3.55, "2": 3.35, "3": 3.15})
    differences = {cap: each["mean"] for cap, each in other["difference"].items()}
    assert differences == pytest.approx({"1": -0.19875, "2": -0.09875, "3": 0.00125})
    smallest = min(other["difference"].values(), key=lambda each: each["p"])
    assert smallest["p_holm"] == pytest.approx(3 * smallest["p"])
    assert under_budgets([made_row("dense", 0, 3.0)]) is None


def test_the_report_shows_them(tmp_path: Path) -> None:
    results: dict[str, Any] = {**made_results(2), "budgets": under_budgets(rows(4))}
    write_report(results, {}, tmp_path)
    report = (tmp_path / "report.md").read_text()
    assert "degrades more gracefully than `versatile` if" in report
    assert "| model | at most 1 | at most 2 | at most 3 |" in report
    assert "| Versatile | 3.550 | 3.350 | 3.150 |" in report
    assert "| minus `versatile` | −0.1" in report
    write_report(made_results(2), {}, tmp_path)
    assert "Under a budget" not in (tmp_path / "report.md").read_text()


def test_the_loss_under_a_budget_is_the_models_under_it(tokens: Path) -> None:  # noqa: F811
    model = make_model(vocab_size=300, max_loops=2)
    context = Context(SMOKE, tokens, seed=0)
    found = capped_losses(model, context)
    windows = PackedDataset(tokens, "val", SMOKE.seq_len)
    free = held_out_loss(model, windows, 8).nats_per_token
    assert list(found) == ["1", "2"]
    assert found["2"] == pytest.approx(free)
    assert abs(found["1"] - free) > 1e-4
    assert all(layer.budget is None for layer in model.reuse_layers())
    assert capped_losses(make_model(variant="moe", vocab_size=300), context) == {}
