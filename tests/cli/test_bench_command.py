"""`versatileffn bench`: which models are compared, on what, and what is refused before."""

import json
import os
import shutil
import signal
import time
from pathlib import Path

import psutil
import pytest
import torch
import typer
from transformers import DynamicCache
from typer.testing import CliRunner

from support.forked import VERB, running
from support.models import VARIANTS, make_ids, make_model
from versatileffn.analysis import speed, twin
from versatileffn.analysis.speed import Timings
from versatileffn.cli.bench import bench_command
from versatileffn.data.tokenizers import train_bpe
from versatileffn.errors import CheckpointError, ConfigError, ResourceError
from versatileffn.execution import select

app = typer.Typer()
app.command()(bench_command)
BRIEF = {"rounds": 1, "seconds": 0, "least": 1}
SOURCE = Path(__file__).parents[2] / "src"


def invoke(*arguments):
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """A folder with a checkpoint of every variant; the versatile one has a tokenizer."""
    folder = tmp_path_factory.mktemp("models")
    for name, settings in VARIANTS.items():
        make_model(vocab_size=300, **settings).save_pretrained(folder / name)
    train_bpe(["def f(x):\n    return x\n"] * 3, 300).save_pretrained(folder / "versatile")
    make_model(variant="dense").save_pretrained(folder / "other-vocabulary")
    return folder


def pair_of(models, name, dense=None, dtype=torch.float32):
    configs = twin.read_pair(str(models / name), dense)
    return twin.load_pair(str(models / name), dense, configs, dtype)


def sides_of(*arguments):
    return pair_of(*arguments).values()


def test_both_models_are_timed_in_all_three_kinds_of_work(models, tmp_path):
    out = tmp_path / "speed.json"
    result = invoke(models / "versatile", "--seconds", 0, "--batch", 2, "--new-tokens", 4,
                    "--json", out)  # fmt: skip
    assert result.exit_code == 0, result.output + repr(result.exception)
    for text in ("prefill", "decode", "training", "2 × 60", "1 × 4", "standard library"):
        assert text in result.output
    found = json.loads(out.read_text())
    assert [row["work"] for row in found["speeds"]] == ["prefill", "decode", "training"]
    assert found["model_sha256"]["reuse"] != found["model_sha256"]["dense"]
    for row in found["speeds"]:
        assert 1 < row["loops"]["reuse"] < 4
        assert row["loops"]["dense"] == 1
        assert row["rounds"] == 5
        assert all(rate["low"] > 0 for rate in row["tokens_per_second"].values())


def test_rates_and_their_ratio_are_those_of_the_clock(models, monkeypatch):
    """Reuse takes twice dense's time in every round: half its tokens per second."""
    timings = Timings({"reuse": [2.0, 4.0, 6.0], "dense": [1.0, 2.0, 3.0]})
    monkeypatch.setattr(speed, "measure", lambda *_, **__: timings)
    sides = pair_of(models, "versatile")
    found = speed.compare("prefill", sides, make_ids(2, 12), 3, **BRIEF)
    assert found["ratio"] == {"median": 0.5, "low": 0.5, "high": 0.5}
    assert found["tokens_per_second"]["reuse"]["median"] == 24 / 4
    assert found["tokens_per_second"]["dense"]["median"] == 24 / 2
    decoded = speed.compare("decode", sides, make_ids(2, 12), 3, **BRIEF)
    assert decoded["tokens_per_second"]["dense"]["median"] == pytest.approx(3 / 2)


def test_the_loops_are_those_of_the_timed_tokens(models):
    reuse, dense = sides_of(models, "versatile")
    ids = make_ids(2, 20)
    found = speed.compare("prefill", {"reuse": reuse, "dense": dense}, ids, 1, **BRIEF)
    with torch.no_grad():
        plans = reuse(ids, output_reuse_plans=True).reuse_plans
    counts = torch.cat([plan.loop_count.flatten() for plan in plans]).double()
    assert found["loops"]["reuse"] == pytest.approx(counts.mean().item())
    assert 1 < found["loops"]["reuse"] < 4


@pytest.mark.parametrize("name", [name for name in VARIANTS if name != "dense"])
def test_the_twin_has_the_models_weights_and_nothing_that_reuse_adds(models, name):
    reuse, dense = sides_of(models, name)
    weights = reuse.state_dict()
    assert dense.config.ffn().variant == "dense"
    assert dense.num_parameters() <= reuse.num_parameters()
    for key, tensor in dense.state_dict().items():
        assert torch.equal(tensor, weights[key]), key
        assert tensor.data_ptr() != weights[key].data_ptr(), key
    if name.endswith("learned"):  # gains at 0 are the dense function: the twin's
        with torch.no_grad():
            for key, parameter in reuse.named_parameters():
                if "gain" in key:
                    parameter.zero_()
            ids = make_ids(2, 9)
            torch.testing.assert_close(reuse(ids).logits, dense(ids).logits)


def test_a_budget_and_the_clock_are_kept_and_recorded(models, tmp_path, monkeypatch):
    monkeypatch.setattr(time, "perf_counter", None)  # calling it would be a TypeError
    out = tmp_path / "speed.json"
    result = invoke(models / "versatile", "--budget", 1, "--seconds", 0, "--new-tokens", 2,
                    "--length", 8, "--cpu-time", "--json", out)  # fmt: skip
    assert result.exit_code == 0, result.output + repr(result.exception)
    assert f"{models / 'versatile'}, max_loops=1" in result.output
    found = json.loads(out.read_text())
    assert (found["max_loops"], found["clock"]) == (1, "cpu")
    assert [row["loops"]["reuse"] for row in found["speeds"]] == [1, 1, 1]
    refused = invoke(models / "versatile", "--budget", 9, "--length", 8)
    assert "max_loops=9 is more than the 4 loops" in str(refused.exception)


@pytest.mark.parametrize("work", ["prefill", "decode"])
def test_a_shortcut_that_gives_something_else_is_not_timed(models, work, monkeypatch):
    """What is timed is held to what is computed while somebody reads the plans."""
    sides = pair_of(models, "versatile")
    sides["reuse"].set_compute_budget(1)
    speed.compare(work, sides, make_ids(1, 9), 3, **BRIEF)
    monkeypatch.setattr(select, "run_once", lambda x, *_: torch.zeros_like(x))
    monkeypatch.setattr(speed.Decoding, "check", lambda *_: None)
    with pytest.raises(CheckpointError, match="reuse: what would be timed differs by"):
        speed.compare(work, sides, make_ids(1, 9), 3, **BRIEF)


def test_another_dense_checkpoint_is_taken_when_named(models):
    reuse, dense = sides_of(models, "versatile", str(models / "dense"))
    assert dense.config.ffn().variant == "dense"
    other = make_model(vocab_size=300, variant="dense").state_dict()
    assert all(torch.equal(tensor, other[key]) for key, tensor in dense.state_dict().items())
    assert reuse.config.ffn().variant == "versatile"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("dense",), "is a dense model"),
        (("versatile", "k-loop"), "is a k-loop model"),
        (("versatile", "other-vocabulary"), "read the same tokens"),
    ],
)
def test_pairs_that_say_nothing_are_refused(models, arguments, message):
    result = invoke(*(models / name for name in arguments))
    assert isinstance(result.exception, ConfigError)
    assert message in str(result.exception)


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        (("--length", 10**6), ConfigError, "1,000,000 tokens .* more than the 64 "),
        (("--new-tokens", 10**6), ConfigError, "1,000,000 new ones are more than the 64 "),
        (("--batch", 10**8), ResourceError, "needs .* GiB of memory, .* available"),
        (("--batch", 10**9, "--work", "prefill"), ResourceError, "needs .* GiB of memory"),
        (("--device", "tpu"), ConfigError, "--device tpu can't be used"),
        (("--device", "meta"), ConfigError, "--device meta can't be used"),
        (("--text", "absent.txt"), Exception, "absent.txt: no such file"),
    ],
)
def test_what_cannot_fit_is_refused_before_anything_is_timed(
    models, options, error, message, monkeypatch
):
    monkeypatch.setattr(speed, "compare", None)  # calling it would be a TypeError
    began = time.monotonic()
    result = invoke(models / "versatile", *options)
    assert isinstance(result.exception, error), result.exception
    with pytest.raises(error, match=message):
        raise result.exception
    assert time.monotonic() - began < 60


def test_without_a_tokenizer_tokens_are_random_and_that_is_said(models):
    result = invoke(models / "k-loop", "--seconds", 0, "--work", "prefill", "--length", 8)
    assert result.exit_code == 0, repr(result.exception)
    assert "text: random tokens" in result.output
    assert "3.00" in result.output  # k loops for every token


def test_a_cache_that_is_not_put_back_stops_the_measurement(models, monkeypatch):
    sides = pair_of(models, "versatile")
    speed.compare("decode", sides, make_ids(1, 9), 3, **BRIEF)  # it is put back
    monkeypatch.setattr(DynamicCache, "crop", lambda *_: None)
    with pytest.raises(CheckpointError, match="reuse: decoding with the cache differs"):
        speed.compare("decode", sides, make_ids(1, 9), 3, **BRIEF)


@pytest.mark.parametrize("work", ["prefill", "training"])
def test_numbers_that_are_not_finite_are_not_timed(models, work):
    reuse, dense = sides_of(models, "versatile")
    with torch.no_grad():
        dense.lm_head.weight.fill_(float("inf"))
    with pytest.raises(CheckpointError, match=f"dense: {work} gives numbers"):
        speed.compare(work, {"reuse": reuse, "dense": dense}, make_ids(1, 9), 3, **BRIEF)


def test_bfloat16_trains_under_autocast_over_float32_weights(models, monkeypatch):
    seen = []
    honest = speed.compare

    def noted(work, sides, *arguments, **budget):
        seen.append((work, sides["reuse"].get_input_embeddings().weight.dtype, arguments[-1]))
        return honest(work, sides, *arguments, **budget)

    monkeypatch.setattr(speed, "compare", noted)
    result = invoke(models / "versatile", "--dtype", "bfloat16", "--seconds", 0, "--length", 8,
                    "--new-tokens", 2)  # fmt: skip
    assert result.exit_code == 0, repr(result.exception)
    half, whole = torch.bfloat16, torch.float32
    assert seen == [("prefill", half, True), ("decode", half, True), ("training", whole, True)]


def test_gradients_that_are_not_finite_are_not_timed(models):
    """The loss is finite, and so are the weights."""
    reuse, dense = sides_of(models, "versatile")
    reuse.model.embed_tokens.weight.register_hook(lambda gradient: gradient / 0)
    with pytest.raises(CheckpointError, match="reuse: training gives numbers"):
        speed.compare("training", {"reuse": reuse, "dense": dense}, make_ids(1, 9), 3, **BRIEF)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupted_run_leaves_no_process(models, tmp_path, number):
    """There is one process, and it ends."""
    shutil.copytree(models / "versatile", tmp_path / "model")
    with running(VERB, "bench", tmp_path / "model", "--seconds", 10000) as process:
        process.wait_for("timing prefill")
        time.sleep(1)  # it measures now
        (pid,) = process.processes
        assert psutil.Process(pid).children(recursive=True) == []
        os.kill(pid, number)
        ended = process.ended()
    assert ended.returncode != 0
    assert "Traceback" not in ended.stderr
