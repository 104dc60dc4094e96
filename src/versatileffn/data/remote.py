"""Tasks that datatrove runs in processes that aren't our children: alone, heard of by files."""

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from loguru import logger

from versatileffn.data.stage import Stage
from versatileffn.errors import ConfigError, DataError, ResourceError
from versatileffn.workspace.durable import make_folder, remove, write_json, writing
from versatileffn.workspace.manifest import read_record

POLL_SECONDS = 5.0
_ERROR = "error.json"
_KINDS = {kind.__name__: kind for kind in (ConfigError, DataError, ResourceError)}


def check_options(
    executor: str,
    options: Mapping[str, str],
    known: Sequence[str] | None = None,
    needed: Mapping[str, str] | None = None,
) -> None:
    """See that an executor can make sense of what the user gave it.

    Args:
        executor: its name.
        options: the user's, by name.
        known: those that it has; None: it passes all of them on.
        needed: those that it can't do without, and what each has to name.

    Raises:
        ConfigError: an option means nothing to it, or is missing.
    """
    if known is not None and (unknown := sorted(set(options) - set(known))):
        raise ConfigError(
            f"executor-option {unknown[0]!r} means nothing to {executor}, only {', '.join(known)}"
        )
    for name, what in (needed or {}).items():
        if not options.get(name):
            raise ConfigError(f"executor={executor} needs --executor-option {name}=NAME, {what}")


class RemoteTask:
    """A step of datatrove's: task i of the executor is our task `ranks[i]`.

    datatrove's own marks of completion aren't used: ours name the files that a task made.

    Args:
        stage: whose tasks.
        ranks: their numbers.
    """

    def __init__(self, stage: Stage, ranks: list[int]) -> None:
        self.stage, self.ranks = stage, ranks
        self.directory = os.getcwd()  # a corpus may be named relative to it

    def __repr__(self) -> str:
        return f"{len(self.ranks)} tasks of {self.stage.folder}"

    def __call__(self, data: Any, index: int, world_size: int) -> None:
        """Run one task, unless it has a record by now, or another one has failed."""
        stage, rank = self.stage, self.ranks[index]
        os.chdir(self.directory)
        os.environ.setdefault("RAYON_NUM_THREADS", os.environ.get("SLURM_CPUS_PER_TASK", "1"))
        make_folder(stage.task_folder(rank))
        if failure(stage) is not None:
            return
        try:
            with writing(stage.records.root, DataError):
                stage.run(rank)
        except Exception as error:
            said = str(error) if type(error).__name__ in _KINDS else f"task {rank}: {error!r}"
            write_json(
                stage.task_folder(rank) / _ERROR, {"kind": type(error).__name__, "text": said}
            )
            raise


def failure(stage: Stage) -> Exception | None:
    """What the first task that failed raised, or None."""
    for path in sorted(stage.folder.glob(f"*/{_ERROR}")):
        record = read_record(path)
        if record is not None:
            return _KINDS.get(record["kind"], ResourceError)(record["text"])
    return None


def forget_failures(stage: Stage) -> None:
    """Let failed tasks be tried again."""
    remove(stage.folder.glob(f"*/{_ERROR}"))


def check_ended(stage: Stage, ranks: list[int]) -> None:
    """Raise what a task raised, or ResourceError where one has no record."""
    if (error := failure(stage)) is not None:
        raise error
    left = sum(not stage.records.exists(rank) for rank in ranks)
    if left:
        raise ResourceError(
            f"{left} of {len(ranks)} tasks didn't finish, and their logs in {logs(stage)} say why: "
            "finished tasks are kept, run the same command again"
        )


@contextmanager
def datatrove_at(stage: Stage) -> Iterator[None]:
    """While datatrove runs or submits a stage: earlier failures are forgotten, logs are files."""
    forget_failures(stage)
    make_folder(logs(stage))
    logger.disable("datatrove")
    try:
        yield
    finally:
        logger.enable("datatrove")


def logs(stage: Stage) -> Path:
    """The folder that datatrove writes its logs to."""
    return stage.folder / "logs"


class Watch:
    """Tells of tasks as their records appear.

    Args:
        stage: whose tasks.
        ranks: their numbers.
        done: is called for each.
    """

    def __init__(self, stage: Stage, ranks: list[int], done: Callable[[], None]) -> None:
        self.stage, self.done = stage, done
        self.open = list(ranks)

    def poll(self) -> None:
        """See which have one by now."""
        for rank in [rank for rank in self.open if self.stage.records.exists(rank)]:
            self.open.remove(rank)
            self.done()
