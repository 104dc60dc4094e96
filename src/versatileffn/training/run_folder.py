"""A run's folder: whether it is new, unfinished or finished, and what belongs to whom."""

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from versatileffn.errors import ConfigError
from versatileffn.files import PARTIAL, beside, write_json
from versatileffn.training.checkpoints import clear_partial, complete_checkpoints
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
        """Whether the run reached its end."""
        return self.summary.is_file()

    def check(self, inputs: dict[str, Any]) -> Path | None:
        """See what can be done in this folder with `inputs`; nothing is written.

        Returns:
            The last whole checkpoint to resume from, or None for a start from step 0.

        Raises:
            ConfigError: the folder holds something else, or a run with other inputs.
        """
        if self.path.exists() and not self.path.is_dir():
            raise ConfigError(f"run.output_dir={self.path} is a file: choose another folder")
        if not self.inputs.is_file():
            foreign = (p for p in self.path.glob("*") if not p.name.endswith(PARTIAL))
            if any(foreign):
                raise ConfigError(
                    f"run.output_dir={self.path} is not empty and holds no training run: choose "
                    "another folder, or empty it"
                )
            return None
        try:
            started_with = json.loads(self.inputs.read_text(encoding="utf-8"))
        except ValueError:
            raise ConfigError(
                f"{self.inputs} is damaged: choose another run.output_dir, or delete this one"
            ) from None
        differing = differences(inputs, started_with)
        if differing:
            raise ConfigError(
                f"run.output_dir={self.path} holds a run with other settings "
                f"({'; '.join(differing)}): restore them, or choose another folder"
            )
        checkpoints = complete_checkpoints(self.checkpoints)
        return checkpoints[-1] if checkpoints else None

    def prepare(self, inputs: dict[str, Any], resumed_step: int) -> None:
        """Make the folder ready: leftovers of an interruption and log lines after it go away."""
        self.path.mkdir(parents=True, exist_ok=True)
        clear_partial(self.path)
        clear_partial(self.checkpoints)
        if not self.inputs.is_file():  # first of all: from now on the folder is known as ours
            write_json(self.inputs, inputs)
        self.checkpoints.mkdir(exist_ok=True)
        keep_log_until(self.log, resumed_step)


def keep_log_until(log: Path, step: int) -> None:
    """Drop the lines of `log` that belong to steps after `step`, and a torn last line."""
    if not log.is_file():
        return
    kept = []
    for line in log.read_text(encoding="utf-8").splitlines():
        try:
            entry = json.loads(line)
        except ValueError:
            continue
        if entry["step"] <= step and step > 0:
            kept.append(line)
    partial = beside(log)
    partial.write_text("".join(line + "\n" for line in kept), encoding="utf-8")
    partial.replace(log)
