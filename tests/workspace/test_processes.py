"""Processes that are killed for real: a worker's death is told, and none outlives its parent."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import NoReturn

import pytest

from support.processes import hear_signals
from versatileffn.errors import ConfigError, DataError, ResourceError
from versatileffn.workspace.processes import check_workers, run_in_processes

HERE = "versatileffn.workspace.processes"
PARENT = """
import sys
from functools import partial
from pathlib import Path
sys.path.insert(0, sys.argv[2])
import test_processes
from versatileffn.workspace.processes import run_in_processes
if __name__ == "__main__":
    task = partial(getattr(test_processes, sys.argv[3]), Path(sys.argv[1]))
    run_in_processes(task, range(2), 2, test_processes.HERE)
"""


Ending = Callable[[Path, int], None]


def note(folder: Path, rank: int) -> None:
    (folder / str(rank)).touch()


def die_at_three(folder: Path, rank: int) -> None:
    if rank == 3:
        time.sleep(0.5)  # the others get to do theirs
        os.kill(os.getpid(), signal.SIGKILL)  # as the kernel does when memory is short
    note(folder, rank)


def refuse(folder: Path, rank: int) -> None:
    raise DataError(f"task {rank}: bad input")


def save_when_told(end: Ending, folder: Path, rank: int) -> None:
    """Task 0 answers SIGTERM as training does, and another one fails in the middle of it."""

    def save(number: int, frame: object) -> NoReturn:
        time.sleep(0.2)
        (folder / "saved").touch()
        raise SystemExit(143)

    if rank == 0:
        signal.signal(signal.SIGTERM, save)
        (folder / "ready").touch()
        time.sleep(30)
    while not (folder / "ready").exists():
        time.sleep(0.02)
    end(folder, rank)


def write_on(folder: Path, rank: int) -> None:
    """Write for ever, as a worker without its parent used to."""
    (folder / f"pid{rank}").write_text(str(os.getpid()))
    while True:
        (folder / f"beat{rank}").write_text(str(time.monotonic_ns()))
        time.sleep(0.02)


def write_through(folder: Path, rank: int) -> None:
    """The same, whatever it is told."""
    signal.signal(signal.SIGTERM, lambda *_: (folder / f"told{rank}").touch())
    write_on(folder, rank)


def test_every_task_is_run(tmp_path: Path) -> None:
    run_in_processes(partial(note, tmp_path), range(7), 2, HERE)
    assert {path.name for path in tmp_path.iterdir()} == set("0123456")


@pytest.mark.timeout(300)
def test_a_killed_worker_is_told(tmp_path: Path) -> None:
    with pytest.raises(ResourceError, match=r"worker process was killed.*same command again"):
        run_in_processes(partial(die_at_three, tmp_path), range(4), 2, HERE)
    assert {path.name for path in tmp_path.iterdir()} >= {"0", "1"}


def test_a_task_that_fails_ends_the_others(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="bad input"):
        run_in_processes(partial(refuse, tmp_path), range(50), 2, HERE)


@pytest.mark.timeout(300)
@pytest.mark.parametrize(
    ("end", "error"), [(die_at_three, ResourceError), (refuse, DataError)], ids=["killed", "failed"]
)
def test_the_others_may_save_what_they_are_at(tmp_path: Path, end: Ending, error: type) -> None:
    with pytest.raises(error):
        run_in_processes(partial(save_when_told, end, tmp_path), (0, 3), 2, HERE)
    assert (tmp_path / "saved").exists()


def kill(parent: subprocess.Popen, folder: Path) -> None:
    parent.kill()


def interrupt_twice(parent: subprocess.Popen, folder: Path) -> None:
    parent.send_signal(signal.SIGINT)
    wait_for(parent, folder, "told")
    parent.send_signal(signal.SIGINT)


def wait_for(parent: subprocess.Popen, folder: Path, name: str) -> None:
    while not all((folder / f"{name}{rank}").exists() for rank in range(2)):
        assert parent.poll() is None
        time.sleep(0.05)


@pytest.mark.timeout(300)
@pytest.mark.parametrize(("task", "end"), [("write_on", kill), ("write_through", interrupt_twice)])
def test_workers_die_with_their_parent(tmp_path: Path, task: str, end: Callable) -> None:
    command = [sys.executable, "-c", PARENT, str(tmp_path), str(Path(__file__).parent), task]
    tests = Path(__file__).parents[1]
    environment = os.environ | {"PYTHONPATH": f"{tests.parent / 'src'}:{tests}"}
    with subprocess.Popen(command, env=environment, preexec_fn=hear_signals) as parent:
        try:
            wait_for(parent, tmp_path, "beat")
            end(parent, tmp_path)
            parent.wait(60)
        finally:
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
