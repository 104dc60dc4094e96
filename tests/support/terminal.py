"""A program on a terminal of its own."""

import os
import pty
import select
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

from support.processes import hear_signals

SOURCE = Path(__file__).parents[2] / "src"
VERSATILEFFN = [sys.executable, "-m", "versatileffn"]
PATIENCE = 180
"""Seconds until a program says what it should; it imports for most of them."""


def environment(**settings) -> dict[str, str]:
    """This one's, with this package and without what decides on colours."""
    colours = ("NO_COLOR", "FORCE_COLOR", "TTY_COMPATIBLE", "TTY_INTERACTIVE", "COLORTERM")
    kept = {name: value for name, value in os.environ.items() if name not in colours}
    here = {"PYTHONPATH": str(SOURCE), "OMP_NUM_THREADS": "1", "TERM": "xterm-256color"}
    return kept | here | settings


class Terminal:
    """Reads what the program writes, and types."""

    def __init__(self, *arguments, program=VERSATILEFFN, **settings) -> None:
        self.screen, theirs = pty.openpty()
        self.shown = ""
        self.process = subprocess.Popen(
            [*program, *map(str, arguments)], stdin=theirs, stdout=theirs, stderr=theirs,
            env=environment(**settings), start_new_session=True, preexec_fn=hear_signals,
        )  # fmt: skip
        os.close(theirs)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.process.kill()
        self.process.wait()
        os.close(self.screen)

    def wait_for(self, text: str, times: int = 1) -> None:
        """Until a text has been shown so often."""
        until = time.monotonic() + PATIENCE
        while self.shown.count(text) < times:
            assert self._read(until), f"no {text!r} in {self.shown!r}"

    def say(self, line: str) -> None:
        os.write(self.screen, f"{line}\n".encode())

    def interrupt(self) -> None:
        """Ctrl-C; again if nothing came of it: `input()` sleeps through one that comes just after
        its prompt."""
        for _ in range(3):
            self.process.send_signal(signal.SIGINT)
            with suppress(subprocess.TimeoutExpired):
                self.process.wait(10)
                return

    def end(self) -> int:
        """The exit code, once everything is read."""
        until = time.monotonic() + PATIENCE
        while self._read(until):
            pass
        return self.process.wait(PATIENCE)

    def _read(self, until: float) -> bool:
        """Some more; False if there is none, or not in time."""
        ready, _, _ = select.select([self.screen], [], [], max(0.0, until - time.monotonic()))
        try:
            new = os.read(self.screen, 2**16) if ready else b""
        except OSError:  # what Linux says at the end
            new = b""
        self.shown += new.decode(errors="replace").replace("\r\n", "\n")
        return bool(new)
