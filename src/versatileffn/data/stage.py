"""One pass over a corpus, task by task, and what runs its tasks."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from versatileffn.data.shards import TaskRecords


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
        """Where an executor keeps what it needs: logs, locks, numbers of jobs."""
        return self.records.folder.with_name(f"{self.records.folder.name}-tasks")


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
