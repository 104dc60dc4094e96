"""The tasks of `tokenize` in processes of this machine, or in this very one."""

from collections.abc import Callable

from versatileffn.data.stage import Stage
from versatileffn.workspace.processes import check_workers, run_in_processes

_PRELOAD = "versatileffn.data.pipeline"


class LocalExecutor:
    """Runs tasks in processes of this machine, or in this very one.

    Args:
        workers: processes.

    Raises:
        ConfigError: more than could be of use here.
    """

    def __init__(self, workers: int) -> None:
        check_workers(workers)
        self.workers = workers

    def run(self, stage: Stage, ranks: list[int], done: Callable[[], None]) -> None:
        """See `Executor`; what a task raises ends the others."""
        workers = min(self.workers, len(ranks))
        if workers > 1:
            run_in_processes(stage.run, ranks, workers, _PRELOAD, done)
            return
        for rank in ranks:
            stage.run(rank)
            done()

    def close(self) -> None:
        """Nothing is held."""
