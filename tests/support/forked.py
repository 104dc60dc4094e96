"""What a program does in a process of its own, or in several that know each other: in forks."""

import atexit
import os
import pickle
import signal
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from torch.distributed import TCPStore

from support.processes import PROCESSES
from support.zygote import Zygote

VERB = "versatileffn.cli.main:main"
CALL = """
import os, pickle, sys
work, arguments = pickle.loads(bytes.fromhex(sys.argv[1]))
work(int(os.environ["RANK"]), *arguments)
"""
PATIENCE = 300.0
"""Seconds after which a command hangs."""


@dataclass(frozen=True)
class Ended:
    """Exit codes of processes (negative: a signal), and what they printed."""

    codes: list[int]
    stdout: str
    stderr: str

    @property
    def returncode(self) -> int:
        """The first that isn't 0."""
        return next(filter(None, self.codes), 0)


class Running:
    """A command that has begun."""

    def __init__(self, zygote: Zygote, processes: list[int], out: Path, err: Path) -> None:
        self.zygote, self.processes, self.out, self.err = zygote, processes, out, err
        self.codes: list[int] | None = None

    def has_ended(self, seconds: float = 0.0) -> bool:
        """Whether it does within this time."""
        if self.codes is None:
            with suppress(TimeoutError):
                self.codes = self.zygote.ended(seconds)["codes"]
        return self.codes is not None

    def wait_for(self, text: str) -> None:
        """Until it has printed a text."""
        began = time.monotonic()
        while text not in self.out.read_text() + self.err.read_text():
            assert not self.has_ended(0.05), f"no {text!r} in {self.ended()}"
            assert time.monotonic() - began < PATIENCE, f"no {text!r} in {PATIENCE} s"

    def ended(self) -> Ended:
        """Its end.

        Raises:
            TimeoutError: it hangs.
        """
        if not self.has_ended(PATIENCE):
            raise TimeoutError(f"{self.out.read_text()}\n{self.err.read_text()}")
        assert self.codes is not None
        return Ended(self.codes, self.out.read_text(), self.err.read_text())

    def kill(self) -> None:
        """SIGKILL to each process and those that it began."""
        for process in self.processes:
            with suppress(ProcessLookupError):
                os.killpg(process, signal.SIGKILL)


@cache
def _zygote() -> Zygote:
    zygote = Zygote()
    atexit.register(zygote.close)
    return zygote


@contextmanager
def running(
    *command: object, environment: Mapping[str, str] | None = None, ranks: int = 0
) -> Iterator[Running]:
    """Begin a command, one at a time; it is killed when the block ends. See `Zygote.fork`.

    Args:
        command: `VERB` and its arguments, or `-c`, a program's text and its arguments.
        environment: what differs from that of the tests.
        ranks: processes of torch.distributed, as torchrun starts them; 0: one without it.
    """
    zygote, words = _zygote(), [str(word) for word in command]
    store = TCPStore("localhost", 0, is_master=True, wait_for_workers=False) if ranks else None
    environments = [
        {**(environment or {}), **(_rank(rank, ranks, store.port) if store else {})}
        for rank in range(ranks or 1)
    ]
    with tempfile.TemporaryDirectory() as place:
        out, err = Path(place, "out"), Path(place, "err")
        out.touch()
        err.touch()
        processes = zygote.fork(words, environments, Path.cwd(), (os.devnull, out, err))
        begun = Running(zygote, processes, out, err)
        try:
            yield begun
        finally:
            if not begun.has_ended():
                begun.kill()
                begun.has_ended(PATIENCE)


def forked(*command: object, environment: Mapping[str, str] | None = None, ranks: int = 0) -> Ended:
    """Run a command to its end; see `running`."""
    with running(*command, environment=environment, ranks=ranks) as begun:
        return begun.ended()


def in_processes(work: Callable[..., None], *arguments: object) -> None:
    """Call a module's function, with each process's number first, in two."""
    pickled = pickle.dumps((work, arguments)).hex()
    ended = forked("-c", CALL, pickled, ranks=PROCESSES)
    assert ended.codes == [0] * PROCESSES, ended.stderr


def _rank(rank: int, ranks: int, port: int) -> dict[str, str]:
    """What torchrun tells a process; the store is the launcher's, so that no port is guessed."""
    return {
        "RANK": str(rank), "LOCAL_RANK": str(rank),
        "WORLD_SIZE": str(ranks), "LOCAL_WORLD_SIZE": str(ranks),
        "MASTER_ADDR": "localhost", "MASTER_PORT": str(port),
        "TORCHELASTIC_USE_AGENT_STORE": "True",
    }  # fmt: skip
