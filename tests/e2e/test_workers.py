"""`versatileffn reproduce --workers 2`, ended in every way that there is, one after the other."""

import os
import re
import signal
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest

from support.forked import VERB, Running, running

CONTINUES = "stopped: run the same command again to continue"


def kill_a_worker(parent: psutil.Process) -> None:
    workers_of(parent)[0].kill()


def workers_of(parent: psutil.Process) -> list[psutil.Process]:
    """The server that they are forked from is the parent's child; they are the server's."""
    return [found for found in parent.children(recursive=True) if found.ppid() != parent.pid]


WAYS: dict[str, tuple[Callable[[psutil.Process], object], int, str]] = {
    "a worker is killed": (kill_a_worker, 1, "error: a worker process was killed"),
    "killed": (psutil.Process.kill, -signal.SIGKILL, ""),
    "told to end": (psutil.Process.terminate, 143, CONTINUES),
    "Ctrl-C": (lambda parent: os.killpg(parent.pid, signal.SIGINT), 130, CONTINUES),
}


@pytest.mark.timeout(900)
def test_nothing_outlives_it_and_it_goes_on(tmp_path: Path) -> None:
    command = [VERB, "reproduce", "--task", "depth", "--scale", "demo", "--seeds", "2",
               "--workers", "2", "--out", tmp_path / "out"]  # fmt: skip
    saved = 0
    for way, (end, code, said) in WAYS.items():
        with running(*command) as begun:
            wait_for_training(begun)
            assert begun.out.read_text().count("resumed after step") >= saved, way
            parent = psutil.Process(begun.processes[0])
            workers = workers_of(parent)
            assert len(workers) == 2
            end(parent)
            ended = begun.ended()
        assert ended.codes == [code], way
        assert said in ended.stderr
        saved = len(re.findall(r"step \d+ is saved", ended.stdout)) or saved
        _, alive = psutil.wait_procs(workers, timeout=30)
        assert not alive, way
        assert saved or end in (kill_a_worker, psutil.Process.kill), way


def wait_for_training(begun: Running) -> None:
    """Until both workers have a run, of which steps are done."""
    deadline = time.monotonic() + 300
    while (
        begun.out.read_text().count("parameters (") < 2
        or len(re.findall(r"^step +[1-9]\d*/\d+  loss", begun.out.read_text(), re.M)) < 2
    ):
        assert not begun.has_ended(0.05), begun.ended()
        assert time.monotonic() < deadline
