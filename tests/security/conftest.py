"""A run in the middle of its work, with its tokens and its model, made once by the real verbs."""

import json
import shutil
from dataclasses import dataclass
from pathlib import Path

import pytest

from support import threads
from support.command_line import run
from training.conftest import write_tokens


@dataclass(frozen=True)
class Place:
    """Folders that verbs read.

    Args:
        root: of all.
        tokens: a token folder.
        run: an unfinished run's folder, with a checkpoint after step 1.
        model: a model with its tokenizer.
        config: the run's file.
    """

    root: Path
    tokens: Path
    run: Path
    model: Path
    config: Path


def at(root: Path) -> Place:
    return Place(root, root / "tokens", root / "run", root / "model", root / "run.yaml")


def write_config(place: Place, strategy: str) -> None:
    place.config.write_text(json.dumps({
        "model": {
            "architecture": {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1,
                             "num_attention_heads": 2},
            "ffn": {"variant": "versatile"},
        },
        "data": {"tokens": "tokens", "seq_len": 16},
        "optim": {"learning_rate": 1e-2},
        "run": {"output_dir": "run", "max_steps": 2, "tokens_per_batch": 32, "use_cpu": True,
                "per_device_train_batch_size": 2, "eval_windows": 2, "save_steps": 1,
                "logging_steps": 1, "report_to": []},
        "parallel": {"strategy": strategy},
    }))  # fmt: skip


def make(root: Path, strategy: str) -> Place:
    """Train, and forget what came after step 1."""
    place = at(root)
    write_tokens(place.tokens)
    write_config(place, strategy)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(root)
        assert run(patch, "train", "run.yaml") == 0
    shutil.move(place.run / "model", place.model)
    (place.run / "run.json").unlink()
    shutil.rmtree(place.run / "checkpoints" / "checkpoint-2")
    return place


@pytest.fixture(scope="session")
def original(tmp_path_factory) -> Place:
    return make(tmp_path_factory.mktemp("original"), "ddp")


@pytest.fixture(scope="session")
def in_shares(tmp_path_factory) -> Place:
    return make(tmp_path_factory.mktemp("in-shares"), "fsdp2")


@pytest.fixture
def copied(tmp_path, monkeypatch):
    """A function from one of these to a copy of it, in which the verb then runs."""

    def copy(place: Place) -> Place:
        shutil.copytree(place.root, tmp_path / "place", symlinks=True)
        monkeypatch.chdir(tmp_path / "place")
        return at(tmp_path / "place")

    return copy


one_thread = pytest.fixture(autouse=True)(threads.one_thread)
