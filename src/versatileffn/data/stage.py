"""One pass over a corpus, task by task, and what runs its tasks."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from versatileffn.data.shards import TaskRecords
from versatileffn.errors import ResourceError
from versatileffn.workspace.durable import make_folder
from versatileffn.workspace.lock import locked


@dataclass(frozen=True)
class Stage:
    """One pass over a corpus.

    Args:
        task: does the work of the task that it is given the number of, and writes its record.
        records: of the tasks that are finished.
    """

    task: Callable[[int], None]
    records: TaskRecords

    @property
    def folder(self) -> Path:
        """Where tasks that aren't children of ours leave logs, locks, and what they raise."""
        return self.records.folder.with_name(f"{self.records.folder.name}-tasks")

    def task_folder(self, rank: int) -> Path:
        """The part of it that is one task's."""
        return self.folder / f"{rank:05d}"

    def run(self, rank: int) -> None:
        """Do one task, unless it has a record by now.

        Raises:
            ResourceError: another process is at it, which an earlier call started elsewhere.
        """
        with self._alone(rank):
            if not self.records.finished(rank):
                self.task(rank)

    @contextmanager
    def _alone(self, rank: int) -> Iterator[None]:
        if not self.folder.is_dir():  # no task was ever run elsewhere
            yield
            return
        make_folder(self.task_folder(rank))
        with locked(self.task_folder(rank), f"task {rank} of {self.folder}", ResourceError):
            yield


class Executor(Protocol):
    """Runs tasks, here or elsewhere. What a task writes depends on its number alone."""

    def run(self, stage: Stage, ranks: list[int], done: Callable[[], None]) -> None:
        """Run the tasks `ranks` of a stage, calling `done` after each; all have a record then.

        Raises:
            DataError: what a task found in the corpus.
            ResourceError: tasks didn't end; those that did are kept.
        """

    def close(self) -> None:
        """Let go of what was held between stages."""
