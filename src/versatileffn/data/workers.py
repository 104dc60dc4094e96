"""Tasks in several processes, which die with this one, and whose death is noticed."""

import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Iterable
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool

from versatileffn.data.stage import Stage
from versatileffn.errors import ConfigError, ResourceError

Task = Callable[[int], None]
_PRELOAD = "versatileffn.data.pipeline"
_THREADS = "RAYON_NUM_THREADS"
_task: Task  # a worker's; handed over once, since it may name a million files


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


def check_workers(workers: int) -> None:
    """Raise ConfigError for more processes than could be of use here."""
    cores = os.cpu_count() or 1
    most = max(8, 4 * cores)
    if not 1 <= workers <= most:
        bound = "at least 1" if workers < 1 else f"at most {most}: this machine has {cores} cores"
        raise ConfigError(f"workers={workers} must be {bound}")


def run_in_processes(
    task: Task,
    ranks: Iterable[int],
    workers: int,
    preload: str,
    finished: Callable[[], None] = lambda: None,
) -> None:
    """Call `task` with each rank, in `workers` processes, and `finished` after each.

    They are forked from a server that has imported the module `preload` once.

    Raises:
        ResourceError: a process died.
        Exception: what the task raised.
    """
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([preload])
    threads = max(1, (os.cpu_count() or 1) // workers)
    others = set(multiprocessing.active_children())
    pool = ProcessPoolExecutor(workers, context, _begin, (task, threads))
    try:
        for future in as_completed([pool.submit(_run, rank) for rank in ranks]):
            future.result()
            finished()
    except BaseException as error:
        pool.shutdown(wait=False, cancel_futures=True)
        for process in set(multiprocessing.active_children()) - others:
            process.kill()  # what it was at is done again; what it finished is on disk
        if isinstance(error, BrokenProcessPool):
            raise ResourceError(
                "a worker process was killed, perhaps because memory ran out: finished tasks are "
                "kept, run the same command again, with fewer --workers if memory is short"
            ) from error
        raise
    finally:
        pool.shutdown()


def _begin(task: Task, threads: int) -> None:
    """What a worker does first."""
    global _task
    _task = task
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the parent, which ends us
    os.environ.setdefault(_THREADS, str(threads))  # the cores are shared
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)


def _run(rank: int) -> None:
    _task(rank)
