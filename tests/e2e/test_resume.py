"""Text to tokens to a model, killed at bad moments: continuing equals never having stopped."""

import json
import signal
import textwrap
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors.torch import load_file

from support import threads
from support.forked import forked
from versatileffn.data.tokenize import tokenize_corpus
from versatileffn.errors import ConfigError
from versatileffn.training.config import TrainConfig
from versatileffn.training.progress import SpeedCallback
from versatileffn.training.run import train

# Trains, and kills itself with SIGKILL the n-th time that the named function is entered.
KILLED_RUN = """
import os, signal, sys
from versatileffn.training import anneal_tau, callbacks, record, trainer
from versatileffn.training.config import load_config

path, moment, count = sys.argv[1], sys.argv[2], int(sys.argv[3])
owner, name = {
    "in a step": (anneal_tau.AnnealTau, "on_step_begin"),
    "in a save": (trainer.ReuseTrainer, "_save_optimizer_and_scheduler"),
    "at the end": (record, "write_json"),
}[moment]
original, entered = getattr(owner, name), 0

def fatal(*args, **kwargs):
    global entered
    entered += 1
    if entered == count:
        os.kill(os.getpid(), signal.SIGKILL)
    return original(*args, **kwargs)

setattr(owner, name, fatal)
from versatileffn.training.run import train
train(load_config(path))
"""


# The same number of threads in this process and in the one that dies.
one_thread = pytest.fixture(autouse=True, scope="module")(threads.one_thread)


@pytest.fixture(scope="module")
def tokens(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("data")
    lines = Path(textwrap.__file__).read_text().splitlines()
    documents = ["\n".join(lines[i : i + 20]) for i in range(0, len(lines), 20)]
    corpus = folder / "corpus.jsonl"
    corpus.write_text("".join(json.dumps({"text": text}) + "\n" for text in documents))
    tokenize_corpus(corpus, folder / "tokens", vocab_size=300, val_documents=3)
    return folder / "tokens"


def settings(tokens: Path, output: Path, **run: Any) -> dict[str, Any]:
    return {
        "model": {
            "architecture": {
                "hidden_size": 32,
                "intermediate_size": 64,
                "num_hidden_layers": 2,
                "num_attention_heads": 2,
            },
            "ffn": {"variant": "versatile", "num_experts": 4, "reuse_gains": "learned"},
        },
        "data": {"tokens": str(tokens), "seq_len": 32},
        "optim": {"learning_rate": 5e-3},
        "run": {
            "output_dir": str(output),
            "max_steps": 9,
            "tokens_per_batch": 32 * 32,  # several epochs: the order crosses their boundaries
            "per_device_train_batch_size": 16,
            "eval_steps": 2,
            "save_steps": 3,
            "logging_steps": 1,
            "use_cpu": True,
            "report_to": [],
        }
        | run,
    }


@pytest.fixture(scope="module")
def uninterrupted(tokens: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    output = tmp_path_factory.mktemp("runs") / "uninterrupted"
    return train(TrainConfig.model_validate(settings(tokens, output)))


def start_and_die(config: Path, moment: str, count: int) -> None:
    result = forked("-c", KILLED_RUN, config, moment, count)
    assert result.returncode == -signal.SIGKILL, result.stderr


def logged(run: Path) -> list[dict]:
    return [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]


def without_times(entries: list[dict]) -> list[dict]:
    timed = ("eval_runtime", "eval_samples_per_second", "eval_steps_per_second")
    timed += ("eval_model_preparation_time",)
    return [{k: v for k, v in entry.items() if k not in timed} for entry in entries]


@pytest.mark.parametrize(("moment", "count", "whole"), [
    ("in a step", 6, ["checkpoint-3"]),
    ("in a save", 2, ["checkpoint-3"]),  # checkpoint-6 is half-written
    ("at the end", 1, ["checkpoint-6", "checkpoint-9"]),  # the model is there, its record isn't
])  # fmt: skip
def test_killed_and_continued_equals_uninterrupted(
    tokens, tmp_path, uninterrupted, moment, count, whole
):
    values = settings(tokens, tmp_path / "run")
    config = tmp_path / "config.yaml"
    config.write_text(yaml.safe_dump(values))
    start_and_die(config, moment, count)
    run = tmp_path / "run"
    assert sorted(p.name for p in (run / "checkpoints").glob("checkpoint-*")) == whole
    assert not (run / "run.json").exists()
    if moment == "in a save":
        assert (run / "checkpoints" / ".partial" / "checkpoint-6" / "model.safetensors").exists()

    train(TrainConfig.model_validate(values))

    ours = load_file(run / "model" / "model.safetensors")
    theirs = load_file(uninterrupted / "model" / "model.safetensors")
    assert ours.keys() == theirs.keys()
    for name in ours:
        assert torch.equal(ours[name], theirs[name]), name
    assert without_times(logged(run)) == without_times(logged(uninterrupted))
    assert (run / "model" / "config.json").read_text() == (
        uninterrupted / "model" / "config.json"
    ).read_text()
    leftovers = [p for p in run.rglob("*") if "partial" in p.name]
    assert leftovers == []


def test_the_comparison_can_fail(tokens, tmp_path, uninterrupted):
    """Another seed of the noise and the order gives other weights and losses."""
    other = train(TrainConfig.model_validate(settings(tokens, tmp_path / "other", seed=1)))
    assert without_times(logged(other)) != without_times(logged(uninterrupted))


def test_other_settings_do_not_continue_and_the_same_do(
    tokens, tmp_path, uninterrupted, monkeypatch
):
    """Stopped before the first checkpoint, a run starts again; with other settings it refuses."""
    steps = iter(range(9))

    def interrupt(*_: Any, **__: Any) -> None:
        if next(steps) == 2:
            raise KeyboardInterrupt

    values = settings(tokens, tmp_path / "run")
    with monkeypatch.context() as patch:
        patch.setattr(SpeedCallback, "on_step_begin", interrupt)
        with pytest.raises(KeyboardInterrupt):
            train(TrainConfig.model_validate(values))
    before = sorted((p, p.stat().st_mtime_ns) for p in (tmp_path / "run").rglob("*"))
    with pytest.raises(ConfigError, match=r"run\.seed is 7, was 0"):
        train(TrainConfig.model_validate(settings(tokens, tmp_path / "run", seed=7)))
    assert before == sorted((p, p.stat().st_mtime_ns) for p in (tmp_path / "run").rglob("*"))
    train(TrainConfig.model_validate(values))
    assert without_times(logged(tmp_path / "run")) == without_times(logged(uninterrupted))
