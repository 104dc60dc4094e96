"""`versatileffn reproduce --task depth` from questions to report, in few steps; rerun; refused."""

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest

from versatileffn.cli.main import main
from versatileffn.reproduce.depth.protocol import depth_protocol
from versatileffn.reproduce.depth.run import reproduce_depth

ARMS = ["dense-4f-k", "paper-both", "prescribed"]


def read(out: Path) -> dict[str, Any]:
    return json.loads((out / "results.json").read_text())


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("depth") / "out"
    reproduce_depth(depth_protocol("smoke", ARMS), out, seeds=2, workers=2)
    return out


def test_questions_to_report(finished: Path) -> None:
    results = read(finished)
    assert [(row["seed"], row["arm"]) for row in results["rows"]] == [
        (seed, arm) for seed in (0, 1) for arm in ("dense-4f-k", "prescribed", "paper-both")
    ]
    for row in results["rows"]:
        assert row["rate"] == results["rates"][row["arm"]]["rate"]
        assert [entry["step"] for entry in row["course"]] == [4, 8]
        assert len(row["exact"]) == 5
    told = results["rows"][1]
    assert told["loops"] == [1, 1, 2, 3, 4]
    assert told["exact"][0] > 0.5  # to copy is learned at once
    assert set(told["caps"]) == {"1", "2", "3", "4"}
    assert told["caps"]["4"] == told["exact"]
    # The prescribed model's FFN work: one loop for k's own token, 1 1 2 3 4 (mean 2.2) at the
    # state's, in the first of two layers of F = 64.
    once = 2 * 3 * 32 * 64
    assert told["flops_executed"] == pytest.approx(once * ((1 + 2.2) / 2 + 1))
    page = (finished / "report.md").read_text()
    assert "VersatileFFN (paper), loops and k open" in page
    assert results["protocol"]["criterion"] in page
    assert (finished / "report.html").read_text().count("data:image/svg+xml;base64,") == 4


def test_loops_opened_while_training(finished: Path) -> None:
    log = finished / "seed-0" / "paper-both" / "train" / "run" / "log.jsonl"
    entries = [json.loads(line) for line in log.read_text().splitlines()]
    opened = [entry["open_loops"] for entry in entries if "open_loops" in entry]
    assert opened[-1] == 4
    inputs = json.loads((log.parent / "inputs.json").read_text())
    assert inputs["config"]["optim"]["loop_curriculum"]["share"] == 0.4


def test_a_rerun_skips_everything_and_workers_change_nothing(
    finished: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = read(finished)["rows"]
    reproduce_depth(depth_protocol("smoke", ARMS), finished, seeds=2)
    assert " …" not in capsys.readouterr().out  # no stage starts
    assert read(finished)["rows"] == before
    reproduce_depth(depth_protocol("smoke", ARMS[:1]), tmp_path / "alone", seeds=1)
    assert read(tmp_path / "alone")["rows"] == before[:1]


def test_in_the_company_of_text(tmp_path: Path) -> None:
    text = depth_protocol("text")
    assert [arm.name for arm in text.arms] == ["dense-4f", "4-loop", "paper"]
    smoke = depth_protocol("smoke", ["paper"])
    protocol = dataclasses.replace(smoke, rates=smoke.rates[:1], task=text.task)
    reproduce_depth(protocol, tmp_path / "out", seeds=1)
    (row,) = read(tmp_path / "out")["rows"]
    assert 2 < row["text_loss"] < 12  # it has begun to learn: it was 12.2
    assert 1 <= row["text_loops"] <= 4
    assert "## The text beside the questions" in (tmp_path / "out" / "report.md").read_text()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--task", "depth", "--corpus", "x"], "makes its own tokens: leave out"),
        (["--task", "deep"], "task='deep' is unknown: choose language or depth"),
        (["--workers", "2", "--scale", "small"], "scale=small doesn't: leave them out"),
    ],
)
def test_refusals(
    options: list[str],
    message: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr("sys.argv", ["versatileffn", "reproduce", *options])
    with pytest.raises(SystemExit):
        main()
    assert message in capsys.readouterr().err
