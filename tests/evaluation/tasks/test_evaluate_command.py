"""`versatileffn evaluate`, through its command function's own parser."""

import json

import pytest
import typer
from typer.testing import CliRunner

from evaluation.tasks import subjects
from versatileffn.cli.evaluate import evaluate_command
from versatileffn.data.tokenizers import EOS_TOKEN
from versatileffn.errors import CheckpointError, ConfigError, DataError

app = typer.Typer()
app.command()(evaluate_command)


def call(*arguments):
    result = CliRunner().invoke(app, [str(a) for a in arguments], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return result.output


def save(subject, folder):
    subject.model.save_pretrained(folder)
    subject.tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory):
    root = tmp_path_factory.mktemp("models")
    return save(subjects.llama(), root / "dense"), save(subjects.versatile(), root / "ours/model")


def test_one_model(checkpoints, tmp_path):
    out = tmp_path / "out"
    printed = call(checkpoints[1], "--tasks", "piqa,sciq", "--limit", 3, "--out", out)
    results = json.loads((out / "results.json").read_text())
    assert list(results["tasks"]) == ["piqa", "sciq"]
    assert results["model_class"] == "VersatileLlamaForCausalLM"
    score = results["tasks"]["piqa"]["paper"]["score"]
    assert f"{100 * score:.2f} ±" in printed
    assert "requests/s (tree, float32)" in printed
    again = call(checkpoints[1], "--tasks", "piqa,sciq", "--limit", 3, "--out", out)
    assert "requests/s" not in again  # nothing was left to ask
    assert json.loads((out / "results.json").read_text())["tasks"] == results["tasks"]


def test_two_models_and_their_difference(checkpoints, tmp_path):
    out = tmp_path / "out"
    printed = call(*checkpoints, "--compare", "--tasks", "sciq", "--limit", 6, "--out", out)
    found = json.loads((out / "comparison.json").read_text())
    scores = [
        json.loads((out / name / "results.json").read_text())["tasks"]["sciq"]["paper"]["score"]
        for name in ("dense", "ours")
    ]
    difference = found["tasks"]["sciq"]["paper"]["difference"]
    assert difference == pytest.approx(scores[1] - scores[0])
    shown = [line for line in printed.splitlines() if line.count(f"{100 * difference:+.2f} (") == 2]
    assert "sciq" in shown[0]  # both ways to count
    assert found["first"]["model"].endswith("dense")
    assert found["second"]["model_sha256"] != found["first"]["model_sha256"]


def test_the_second_model_is_looked_at_before_the_first_is_scored(checkpoints, tmp_path):
    with pytest.raises(CheckpointError, match="there is no such folder"):
        call(checkpoints[0], "./nosuch", "--compare", "--tasks", "sciq", "--out", tmp_path / "out")
    assert not list((tmp_path / "out").glob("**/records.jsonl"))


def test_a_tokenizer_without_an_end_of_text_will_do(checkpoints, tmp_path):
    words = (checkpoints[0] / "tokenizer.json").read_text().replace(EOS_TOKEN, "<unusual>")
    (tmp_path / "tokenizer.json").write_text(words)
    given = ("--tokenizer", tmp_path / "tokenizer.json")
    call(checkpoints[0], "--tasks", "sciq", "--limit", 2, "--out", tmp_path / "out", *given)


def test_bf16_is_said_in_the_results(checkpoints, tmp_path):
    call(checkpoints[0], "--bf16", "--tasks", "piqa", "--limit", 2, "--out", tmp_path / "out")
    assert json.loads((tmp_path / "out" / "results.json").read_text())["dtype"] == "bfloat16"


def test_what_is_wrong_is_said(checkpoints, tmp_path):
    dense, ours = checkpoints
    out = ("--limit", 1, "--out", tmp_path / "out")
    with pytest.raises(ConfigError, match="--compare needs two models, 1 given"):
        call(dense, "--compare", *out)
    with pytest.raises(ConfigError, match="did you mean 'hellaswag'"):
        call(dense, "--tasks", "hellaswg", *out)
    with pytest.raises(CheckpointError, match=r"is a run folder: give .*/model"):
        call(ours.parent, *out)
    with pytest.raises(CheckpointError, match="no readable checkpoint"):
        call(tmp_path, *out)
    with pytest.raises(CheckpointError, match="there is no such file"):
        call(tmp_path / "x.gguf", *out)
    for device in ("abacus", "meta"):
        with pytest.raises(ConfigError, match=f"--device {device} can't be used"):
            call(dense, "--device", device, *out)
    with pytest.raises(DataError, match=r"nosuch.json: no such tokenizer; .* a Hub id, or `olmo`"):
        call(dense, "--tokenizer", "nosuch.json", *out)
    (tmp_path / "bare").mkdir()
    subjects.llama().model.save_pretrained(tmp_path / "bare")
    with pytest.raises(DataError, match=r"has no tokenizer that loads .*--tokenizer"):
        call(tmp_path / "bare", *out)
    torn = tmp_path / "torn.gguf"
    torn.write_bytes(b"GGUF")
    with pytest.raises(CheckpointError, match=r"torn.gguf( can't be read|: reading GGUF needs)"):
        call(torn, *out)
