"""log.jsonl: a JSON object for each logged step, restored from the checkpoint it belongs to."""

import json
import math
import os
import shutil
from pathlib import Path
from typing import Any

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from versatileffn.training.progress import SpeedCallback, progress_line
from versatileffn.workspace.durable import open_own, write_bytes, writing


class LogCallback(TrainerCallback):
    """Appends every logged step to a file, and prints a line on it.

    Args:
        path: the file; a number that isn't finite becomes null in it.
        speed: measures tokens per second.
    """

    def __init__(self, path: Path, speed: SpeedCallback) -> None:
        self.path, self.speed = path, speed

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, Any] | None = None,
        **kwargs: Any,
    ) -> None:
        """Write one line, and print one."""
        if not state.is_world_process_zero or not logs:
            return
        entry = {"step": state.global_step} | logs
        append_entry(self.path, entry)
        shown = progress_line(state.global_step, state.max_steps, logs, self.speed)
        if shown is not None:
            print(shown, flush=True)


def append_entry(log: Path, entry: dict[str, Any]) -> None:
    """Add a line to a run's log; a number that isn't finite becomes null.

    Raises:
        ResourceError: the disk is full.
        ConfigError: it can't be written otherwise.
    """
    finite = {
        key: None if isinstance(value, float) and not math.isfinite(value) else value
        for key, value in entry.items()
    }
    line = json.dumps(finite, allow_nan=False) + "\n"
    with writing(log), open_own(log, os.O_APPEND) as file:
        file.write(line.encode())


def copy_log(log: Path, checkpoint: Path) -> None:
    """Put the log as it is now into a checkpoint that is being written."""
    if log.is_file():
        shutil.copyfile(log, checkpoint / log.name)
    else:
        (checkpoint / log.name).touch()


def restore_log(log: Path, checkpoint: Path | None) -> bool:
    """Bring the log back to what it was when a checkpoint was written; None: to nothing.

    Returns:
        Whether lines had been lost or changed since; ones that were added don't count.
    """
    before = (checkpoint / log.name).read_bytes() if checkpoint else b""
    found = log.read_bytes() if log.is_file() else b""
    if found != before:
        write_bytes(log, before)
    return not found.startswith(before)
