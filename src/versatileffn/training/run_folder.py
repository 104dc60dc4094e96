"""A run's folder: whether it is new, unfinished or finished, and what belongs to whom."""

import hashlib
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from versatileffn.errors import ConfigError
from versatileffn.files import LOCK, beside, locked, write_json, writing
from versatileffn.training.checkpoints import (
    check_whole,
    complete_checkpoints,
    leftovers,
    remove,
    step_of,
)
from versatileffn.training.config import TrainConfig

# What may differ between the start of a run and its continuation without changing its outcome.
_FREE = (
    ("run", "output_dir"),
    ("run", "report_to"),
    ("run", "save_total_limit"),
    ("run", "dataloader_num_workers"),
)


def file_sha256(path: Path) -> str:
    """SHA-256 of a file's bytes, in hexadecimal."""
    return hashlib.sha256(path.read_bytes()).hexdigest()


def run_inputs(config: TrainConfig, world_size: int) -> dict[str, Any]:
    """Everything a run's outcome depends on: its configuration, its tokens, its processes."""
    settings = config.model_dump(mode="json")
    for section, key in _FREE:
        del settings[section][key]
    meta = file_sha256(Path(config.data.tokens) / "meta.json")
    return {"config": settings, "tokens_meta_sha256": meta, "world_size": world_size}


def _read_object(path: Path) -> dict[str, Any]:
    """A JSON object of ours; empty where it is missing or damaged."""
    try:
        content = json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError):
        return {}
    return content if isinstance(content, dict) else {}


def differences(ours: Any, theirs: Any, path: str = "") -> list[str]:
    """Dotted keys whose values differ, as `a.b: ours, was theirs`."""
    if isinstance(ours, dict) and isinstance(theirs, dict):
        found = []
        for key in sorted(ours.keys() | theirs.keys()):
            inner = f"{path}.{key}" if path else key
            found += differences(ours.get(key), theirs.get(key), inner)
        return found
    name = path.removeprefix("config.")
    return [] if ours == theirs else [f"{name} is {ours!r}, was {theirs!r}"]


@dataclass(frozen=True)
class RunFolder:
    """Where a run keeps its files.

    Args:
        path: the run's `output_dir`.
    """

    path: Path

    @property
    def checkpoints(self) -> Path:
        """Folder of `checkpoint-<step>` folders."""
        return self.path / "checkpoints"

    @property
    def model(self) -> Path:
        """Folder of the final model and tokenizer."""
        return self.path / "model"

    @property
    def log(self) -> Path:
        """One JSON object per logged step."""
        return self.path / "log.jsonl"

    @property
    def summary(self) -> Path:
        """The finished run's record; it is written last, so its presence means finished."""
        return self.path / "run.json"

    @property
    def inputs(self) -> Path:
        """What the run was started with."""
        return self.path / "inputs.json"

    @property
    def finished(self) -> bool:
        """Whether the run reached its end, and its record and model are still there."""
        return bool(_read_object(self.summary)) and self.has_model

    @property
    def has_model(self) -> bool:
        """Whether the final model is there; it is renamed into place, so then it is whole."""
        return (self.model / "config.json").is_file() and any(self.model.glob("*.safetensors"))

    @contextmanager
    def held(self) -> Iterator[None]:
        """Make the folder if need be, and keep other runs out of it.

        Raises:
            ConfigError: it can't be written, or another run is using it.
        """
        with writing(self.path):
            self.path.mkdir(parents=True, exist_ok=True)
            (self.path / LOCK).touch()
        with locked(self.path, f"run.output_dir={self.path}"):
            yield

    def check(self, inputs: dict[str, Any]) -> Path | None:
        """See what can be done in this folder with `inputs`; nothing is written.

        Returns:
            The last whole checkpoint to resume from, or None for a start from step 0.

        Raises:
            ConfigError: the folder holds something else, or a run with other inputs.
        """
        with writing(self.path):
            if os.path.lexists(self.path) and not self.path.is_dir():
                raise ConfigError(
                    f"run.output_dir={self.path} is a file, or a link to nothing: choose another "
                    "folder"
                )
            new = not self.inputs.is_file()
            own = {LOCK, beside(self.inputs).name}  # of a run that was killed at birth
            foreign = new and self.path.is_dir() and {p.name for p in self.path.iterdir()} - own
        if foreign:
            raise ConfigError(
                f"run.output_dir={self.path} is not empty and holds no training run: choose "
                "another folder, or empty it"
            )
        if new:
            return None
        started_with = _read_object(self.inputs)
        if not started_with:
            raise ConfigError(
                f"{self.inputs} is damaged: choose another run.output_dir, or delete this one"
            )
        if self.model.exists() and not self.has_model:
            raise ConfigError(
                f"{self.model} lacks its weights or its config.json: delete it, and the same "
                "command writes it again"
            )
        differing = differences(inputs, started_with)
        if differing:
            raise ConfigError(
                f"run.output_dir={self.path} holds a run with other settings "
                f"({'; '.join(differing)}): restore them, or choose another folder"
            )
        checkpoints = complete_checkpoints(self.checkpoints)
        return checkpoints[-1] if checkpoints else None

    def prepare(self, inputs: dict[str, Any]) -> None:
        """Make the held folder ready: an interruption's leftovers and later log lines go away.

        Raises:
            ConfigError: see `check`.
            CheckpointError: the checkpoint to resume from is damaged.
        """
        checkpoint = self.check(inputs)  # again: time has passed before the folder was held
        if checkpoint:
            check_whole(checkpoint)
        remove(beside(path) for path in (self.inputs, self.model, self.log, self.summary))
        remove(leftovers(self.checkpoints))
        if not self.inputs.is_file():  # first of all: from now on the folder is known as ours
            write_json(self.inputs, inputs)
        self.checkpoints.mkdir(exist_ok=True)
        keep_log_until(self.log, step_of(checkpoint) if checkpoint else 0)


def keep_log_until(log: Path, step: int) -> None:
    """Drop the lines of `log` that belong to steps after `step`, and what isn't a line of ours."""
    if not log.is_file():
        return
    kept = []
    for line in log.read_bytes().splitlines():
        try:
            entry = json.loads(line)
        except (ValueError, RecursionError):
            continue
        at = entry.get("step") if isinstance(entry, dict) else None
        if isinstance(at, int) and at <= step and step > 0:
            kept.append(line + b"\n")
    partial = beside(log)
    partial.write_bytes(b"".join(kept))
    partial.replace(log)
