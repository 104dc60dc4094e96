"""Tasks in several processes, which die with this one, and whose death is noticed."""

import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Collection, Iterable
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from multiprocessing.process import BaseProcess

from versatileffn.errors import ConfigError, ResourceError

Task = Callable[[int], None]
_THREADS = "RAYON_NUM_THREADS"
_task: Task  # a worker's; handed over once, since it may name a million files


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

    They are forked from a server that has imported the module `preload` once. When one fails, or
    this process is told to end, the others get a SIGTERM and are waited for: training saves first.

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
        futures = [pool.submit(_run, rank) for rank in ranks]
        pool.submit(int)  # the death of a process begun by one call is heard of from the next on
        for future in as_completed(futures):
            future.result()
            finished()
    except BaseException as error:
        pool.shutdown(wait=False, cancel_futures=True)
        _end(set(multiprocessing.active_children()) - others)
        if isinstance(error, BrokenProcessPool):
            raise ResourceError(
                "a worker process was killed, perhaps because memory ran out: finished tasks are "
                "kept, run the same command again, with fewer --workers if memory is short"
            ) from error
        raise
    finally:
        pool.shutdown()


def _end(workers: Collection[BaseProcess]) -> None:
    """Let them save what they are at, and wait; told to end again meanwhile, wait no longer."""
    for worker in workers:
        worker.terminate()
    try:
        for worker in workers:
            worker.join()
    except BaseException:
        for worker in workers:
            worker.kill()
        raise


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
    try:
        _task(rank)
    except SystemExit:  # of a task that answers SIGTERM: this process has no other to go on with
        os._exit(1)
