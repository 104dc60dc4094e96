"""A run's folder: whether it is new, unfinished or finished, and what belongs to whom."""

import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from versatileffn.errors import CheckpointError, ConfigError
from versatileffn.training.checkpoints import (
    Binding,
    complete_checkpoints,
    contents,
    leftovers,
    newest_whole,
    reject,
    step_of,
)
from versatileffn.training.divergence import check_not_diverged
from versatileffn.training.inputs import Inputs, check_same_run, inputs_sha256
from versatileffn.training.log_file import restore_log
from versatileffn.workspace.durable import beside, make_folder, remove, sync, write_json, writing
from versatileffn.workspace.folder import claim
from versatileffn.workspace.lock import LOCK, locked
from versatileffn.workspace.manifest import files_of, read_record

Say = Callable[[str], None]


class RunFolder:
    """Where a run keeps its files.

    Args:
        path: the run's `output_dir`.

    Attributes:
        checkpoints: folder of `checkpoint-<step>` folders.
        model: folder of the final model and tokenizer.
        log: one JSON object per logged step.
        summary: the finished run's record; it is written last, so its presence means finished.
        inputs: what the run was started with, and its id.
        divergence: whether and where the run diverged.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.checkpoints, self.model = path / "checkpoints", path / "model"
        self.log, self.summary = path / "log.jsonl", path / "run.json"
        self.inputs, self.divergence = path / "inputs.json", path / "diverged.json"

    @property
    def has_model(self) -> bool:
        """Whether the final model is there; it is renamed into place, so then it is whole."""
        return (self.model / "config.json").is_file() and any(self.model.glob("*.safetensors"))

    def finished(self, steps: int) -> bool:
        """Whether the run made all its steps, and its record and model are still there."""
        record = read_record(self.summary) or {}
        files = files_of(record) or {}
        whole = all((self.path / name).is_file() for name in files)
        return record.get("steps") == steps and self.has_model and whole

    @contextmanager
    def held(self) -> Iterator[None]:
        """Make the folder if need be, and keep other runs out of it.

        Raises:
            ConfigError: it can't be written, or another run is using it.
        """
        with writing(self.path):
            make_folder(self.path)
        with locked(self.path, f"run.output_dir={self.path}"):
            yield

    def check(self, inputs: Inputs) -> Path | None:
        """See what can be done in this folder with `inputs`; nothing is written.

        Returns:
            The newest checkpoint, or None for a start from step 0. It isn't read yet.

        Raises:
            ConfigError: the folder holds something else, or a run with other inputs.
            DivergedError: the run in it diverged.
        """
        with writing(self.path):
            if not self.path.is_dir():
                if self.path.exists() or self.path.is_symlink():
                    raise ConfigError(
                        f"run.output_dir={self.path} is a file, or a link to nothing: choose "
                        "another folder"
                    )
                return None
            own = {LOCK, beside(self.inputs).name}  # of a run that was killed at birth
            empty = not {child.name for child in self.path.iterdir()} - own
        record = self._started_with(inputs)
        if record is None:
            if not empty:
                self._refuse()
            return None
        if self.model.exists() and not self.has_model:
            raise ConfigError(
                f"{self.model} lacks its weights or its config.json: delete it, and the same "
                "command writes it again"
            )
        check_same_run(inputs, record, self.path)
        checkpoints = complete_checkpoints(self.checkpoints)
        newest = checkpoints[-1] if checkpoints else None
        check_not_diverged(self.divergence, newest)
        return newest

    def _started_with(self, inputs: Inputs) -> dict[str, Any] | None:
        """inputs.json; where that is lost, the same from what bears witness of it.

        Checkpoints and the finished run's record hold the run's id and a digest of its inputs. If
        that is the digest of `inputs`, they are what the run was started with.
        """
        record = read_record(self.inputs)
        if record is not None and isinstance(record.get("run_id"), str):
            return record
        if record is not None:
            raise ConfigError(
                f"run.output_dir={self.path} holds a run of an earlier version, which can't be "
                "continued: choose another folder"
            )
        witnesses = [contents(path) for path in complete_checkpoints(self.checkpoints)]
        digest = inputs_sha256(inputs)
        for witness in (read_record(self.summary), *reversed(witnesses)):
            if witness and witness.get("run_id") and witness.get("inputs_sha256") == digest:
                steps = witness.get("steps", inputs["steps"])
                return inputs | {"run_id": witness["run_id"], "steps": steps}
        return None

    def _refuse(self) -> None:
        if self.inputs.is_file():
            raise ConfigError(
                f"{self.inputs} is damaged, and no checkpoint is of a run with these settings: "
                "restore the settings, choose another run.output_dir, or delete this one"
            )
        claim(self.path, self.inputs.name, "training run")

    def prepare(self, inputs: Inputs, say: Say = print) -> Binding:
        """Make the held folder ready: an interruption's leftovers and later log lines go away.

        Bookkeeping that was lost is written again, and checkpoints that can't serve are set aside;
        both are said.

        Returns:
            What the run's checkpoints are bound to.

        Raises:
            ConfigError, DivergedError: see `check`.
            CheckpointError: there are checkpoints, and none can serve.
        """
        newest = self.check(inputs)  # again: time has passed before the folder was held
        record = self._started_with(inputs) or inputs | {"run_id": uuid.uuid4().hex}
        binding = Binding(record["run_id"], inputs_sha256(inputs))
        checkpoint, faults = newest_whole(self.checkpoints, binding)
        if newest is not None and checkpoint is None:
            raise CheckpointError(
                f"{newest} can't be resumed from ({faults[newest]}), nor any before it: delete "
                f"{self.checkpoints} to start the run again"
            )
        if inputs["steps"] > record["steps"]:
            self._extend(checkpoint, record["steps"], inputs["steps"], say)
            record = record | {
                "planned_before": [*record.get("planned_before", []), record["steps"]]
            }
        if inputs["world_size"] != record["world_size"]:
            say(
                f"the run goes on with {inputs['world_size']} processes, before it had "
                f"{record['world_size']}: the same batches, other noise and rounding"
            )
            before = [*record.get("processes_before", []), record["world_size"]]
            record = record | {"processes_before": before}
        with writing(self.path):
            if read_record(self.inputs) != record | inputs:
                if newest is not None and read_record(self.inputs) is None:
                    say(f"{self.inputs} was damaged: written again from what the checkpoints say")
                write_json(self.inputs, record | inputs)  # from now on the folder is known as ours
            for path, reason in faults.items():
                say(f"{path} can't be resumed from ({reason}): set aside as {reject(path)}")
            remove(beside(path) for path in (self.inputs, self.model, self.log, self.summary))
            remove(leftovers(self.checkpoints))
            self.checkpoints.mkdir(exist_ok=True)
            sync(self.path)
            if restore_log(self.log, checkpoint) and checkpoint is not None:
                say(f"{self.log} had lost lines: restored from {checkpoint}")
        return binding

    def _extend(self, checkpoint: Path | None, before: int, now: int, say: Say) -> None:
        if checkpoint is None and self.model.exists():
            raise CheckpointError(
                f"{self.checkpoints} holds no checkpoint to go on from after step {before}: start "
                f"another run with model.init_from={self.model}"
            )
        at = step_of(checkpoint) if checkpoint else 0
        say(
            f"the run of {before} steps goes on to {now}, from step {at}: learning rate and τ "
            "stay where they end"
        )
