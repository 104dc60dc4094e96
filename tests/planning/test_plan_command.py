"""`versatileffn plan`: what is said of shipped files, overrides, GPUs, and what is refused."""

import json

import pytest
from typer.testing import CliRunner

from support.launch import SOURCE
from versatileffn.analysis.flops import model_cost
from versatileffn.analysis.presets import preset
from versatileffn.analysis.training_flops import training_flops
from versatileffn.cli.main import app
from versatileffn.errors import ConfigError
from versatileffn.planning.gpus import GPUS, find_gpu
from versatileffn.planning.plan import RunPlan
from versatileffn.training.config import load_config

CONFIGS = SOURCE.parent / "configs"
TINY = [str(CONFIGS / "tiny.yaml"), "--set", "data.tokens=nowhere", "--gpu", "h200"]
WORDS = ["--set", "model.architecture.vocab_size=512"]
SMALL = ["--set", "model.architecture.num_hidden_layers=1", "--set", "data.seq_len=32",
         "--set", "run.tokens_per_batch=1024"]  # fmt: skip


def plan(*arguments):
    return CliRunner().invoke(app, ["plan", *map(str, arguments)])


def test_a_shipped_file_is_planned_with_overrides_as_train_takes_them(tmp_path):
    out = tmp_path / "plan.json"
    done = plan(*TINY, *WORDS, *SMALL, "--json", out, "--set", "model.ffn.variant=versatile")
    assert done.exit_code == 0, done.output
    assert "40% is an assumption" in done.output
    record = json.loads(out.read_text())
    (mode,) = record["modes"]
    assert mode["peak"] == sum(mode["parts"].values())
    assert mode["fits"]
    (own,) = [form for form in record["forms"] if form["own"]]
    assert own["name"] == "VersatileFFN"
    assert own["parameters"] == record["parameters"]
    assert record["tokens"] == 600 * 1024
    seconds = own["flops"] * record["tokens"] / (GPUS["h200"].tflops * 1e12 * 0.4)
    assert own["gpu_hours"] == pytest.approx(seconds / 3600)


def test_a_small_gpu_is_too_small_and_windows_that_fit_are_said(tmp_path):
    out = tmp_path / "plan.json"
    done = plan(*TINY[:3], *WORDS, "--memory", "0.1", "--tflops", "1", "--json", out)
    assert done.exit_code == 0, done.output
    assert "does not fit into 90% of 0.1 GiB" in done.output
    fewer = json.loads(out.read_text())["modes"][0]["windows_at_once"]
    assert 0 < fewer < 16
    config = load_config(TINY[0], [WORDS[1], TINY[2], f"run.per_device_train_batch_size={fewer}",
                                   f"run.tokens_per_batch={256 * fewer * 2}"])  # fmt: skip
    gpu = find_gpu(None, 0.1, 1)
    assert RunPlan(config, 1).mode("ddp").fits(gpu)


@pytest.mark.parametrize(("arguments", "message"), [
    (["--gpu", "h20"], "--gpu h20 is unknown; did you mean"),
    (["--gpu", "zzz"], "known here: a10, l4"),
    ([], "which GPU\\? give --gpu"),
    (["--memory", "80"], "which GPU\\? give --gpu"),
], ids=["near", "far", "none", "half"])  # fmt: skip
def test_an_unknown_gpu_is_refused(arguments, message):
    done = plan(*TINY[:3], *WORDS, *arguments)
    assert done.exit_code == 1
    with pytest.raises(ConfigError, match=message):
        raise done.exception


@pytest.mark.parametrize(("arguments", "message"), [
    (TINY, "isn't here, and model.architecture has no vocab_size"),
    ([*TINY, *WORDS, "--set", "run.max_steps=null", "--set", "run.num_train_epochs=1"],
     "nobody knows how long"),
    ([*TINY, *WORDS, "--gpus", "3"], "not a multiple of 3 processes"),
    ([*TINY, *WORDS, "--mean-loops", "2"], "--mean-loops=2 must lie in 1 to max_loops=1"),
    ([*TINY, *WORDS, "--set", "model.ffn.variant=versatile", "--set", "optim.consistency={}"],
     "isn't planned"),
], ids=["vocabulary", "epochs", "processes", "loops", "consistency"])  # fmt: skip
def test_what_cannot_be_planned_is_said(arguments, message):
    done = plan(*arguments)
    assert done.exit_code == 1
    with pytest.raises(ConfigError, match=message):
        raise done.exception


def test_executions_that_come_to_the_same_are_run_once(monkeypatch):
    overrides = [*WORDS[1:], TINY[2], *SMALL[1::2], "model.ffn.variant=versatile"]
    planned = RunPlan(load_config(TINY[0], overrides), 1)
    done = []
    before = RunPlan.mode
    monkeypatch.setattr(RunPlan, "mode", lambda *a, **k: done.append(k) or before(*a, **k))
    modes = list(planned.modes())
    assert len(modes) == 16
    assert len(done) == 12
    by_name = {(m.execution, m.gradient_checkpointing, m.bf16): m.peak for m in modes}
    assert by_name["auto", False, False] == by_name["packed", False, False]


def test_flops_of_a_dense_model_are_six_per_weight_and_attention():
    config = preset("354m")
    attention = 4 * config.hidden_size**2 + 2 * 4096 * config.hidden_size / 2
    weights = config.num_hidden_layers * attention + config.vocab_size * config.hidden_size
    expected = 6 * weights + 3 * model_cost(config).once
    assert training_flops(config, 4096) == pytest.approx(expected)
