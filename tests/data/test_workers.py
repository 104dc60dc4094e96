"""Processes that are killed for real: a worker's death is told, and none outlives its parent."""

import os
import signal
import subprocess
import sys
import time
from functools import partial
from pathlib import Path

import pytest

from versatileffn.data.workers import check_workers, run_in_processes
from versatileffn.errors import ConfigError, DataError, ResourceError

WORKERS = "versatileffn.data.workers"
PARENT = """
import sys
from functools import partial
from pathlib import Path
sys.path.insert(0, sys.argv[2])
from test_workers import write_on
from versatileffn.data.workers import run_in_processes
if __name__ == "__main__":
    run_in_processes(partial(write_on, Path(sys.argv[1])), range(2), 2, "versatileffn.data.workers")
"""


def note(folder: Path, rank: int) -> None:
    (folder / str(rank)).touch()


def die_at_three(folder: Path, rank: int) -> None:
    if rank == 3:
        time.sleep(0.5)  # the others get to do theirs
        os.kill(os.getpid(), signal.SIGKILL)  # as the kernel does when memory is short
    note(folder, rank)


def refuse(rank: int) -> None:
    raise DataError(f"task {rank}: bad input")


def write_on(folder: Path, rank: int) -> None:
    """Write for ever, as a worker without its parent used to."""
    (folder / f"pid{rank}").write_text(str(os.getpid()))
    while True:
        (folder / f"beat{rank}").write_text(str(time.monotonic_ns()))
        time.sleep(0.02)


def test_every_task_is_run(tmp_path: Path) -> None:
    run_in_processes(partial(note, tmp_path), range(7), 2, WORKERS)
    assert {path.name for path in tmp_path.iterdir()} == set("0123456")


@pytest.mark.timeout(300)
def test_a_killed_worker_is_told(tmp_path: Path) -> None:
    with pytest.raises(ResourceError, match=r"worker process was killed.*same command again"):
        run_in_processes(partial(die_at_three, tmp_path), range(4), 2, WORKERS)
    assert {path.name for path in tmp_path.iterdir()} >= {"0", "1"}


def test_a_task_that_fails_ends_the_others() -> None:
    with pytest.raises(DataError, match="bad input"):
        run_in_processes(refuse, range(50), 2, WORKERS)


@pytest.mark.timeout(300)
def test_workers_die_with_a_killed_parent(tmp_path: Path) -> None:
    command = [sys.executable, "-c", PARENT, str(tmp_path), str(Path(__file__).parent)]
    source = Path(__file__).parents[2] / "src"
    with subprocess.Popen(command, env=os.environ | {"PYTHONPATH": str(source)}) as parent:
        while not all((tmp_path / f"beat{rank}").exists() for rank in range(2)):
            assert parent.poll() is None
            time.sleep(0.05)
        parent.kill()
    pids = [int((tmp_path / f"pid{rank}").read_text()) for rank in range(2)]
    while any(map(running, pids)):  # the test's timeout is what fails
        time.sleep(0.05)
    beats = [(tmp_path / f"beat{rank}").read_bytes() for rank in range(2)]
    time.sleep(0.3)
    assert beats == [(tmp_path / f"beat{rank}").read_bytes() for rank in range(2)]


def running(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except FileNotFoundError:
        return False
    return state != "Z"  # a dead one may wait for whoever adopted it


@pytest.mark.parametrize("workers", [0, -1, 10**6, 2**64])
def test_a_senseless_number_of_workers(workers: int) -> None:
    with pytest.raises(ConfigError, match=f"workers={workers} must be"):
        check_workers(workers)
