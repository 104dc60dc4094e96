"""How the command line ends when it is told to: in one line, with the shell's exit code.

Only the standard library is imported here, for this is needed before anything else is.
"""

import os
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any, NoReturn

ENDING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1)
"""SIGUSR1 is what batch systems are asked to send some minutes before they end a job."""
Handler = Callable[[int, FrameType | None], object]
EXIT_CODES = tuple(128 + number for number in ENDING)
"""What a shell calls a program that a signal ended: 130, 143, 129, 138."""
COMPLETING = "_VERSATILEFFN_COMPLETE"
"""Environment variable; set by a shell that completes a command."""


def is_command_line() -> bool:
    """Whether this process is `versatileffn`, and not somebody's program that imports it."""
    name = os.path.basename(sys.argv[0]) if sys.argv else ""
    if name == "-m":  # while the module is looked up; what follows the option is its name
        after = sys.orig_argv[sys.orig_argv.index("-m") + 1 :] if "-m" in sys.orig_argv else []
        return after[:1] in (["versatileffn"], ["versatileffn.cli.main"])
    return name == "versatileffn"


def wants_words_only() -> bool:
    """Whether the command line is asked for words alone: a shell waits for them at each tab."""
    options = ("--version", "--help", "--show-completion", "--install-completion")
    alone = len(sys.argv) == 1 or (len(sys.argv) == 2 and sys.argv[1] in options)
    return is_command_line() and (alone or COMPLETING in os.environ)


def end_while_importing() -> None:
    """Until `ending` takes over, let signals end this process at once: nothing is begun yet."""

    def end(number: int, frame: FrameType | None) -> NoReturn:
        os.write(2, b"stopped\n")
        os._exit(128 + number)

    listen(end)


@contextmanager
def ending() -> Iterator[None]:
    """While the block runs, signals raise, so that what is held is let go of.

    Ctrl-C raises KeyboardInterrupt, the others SystemExit with the shell's code. A process forked
    from this one ends as it would without.
    """
    owner = os.getpid()

    def end(number: int, frame: FrameType | None) -> None:
        if os.getpid() != owner:
            signal.signal(number, signal.SIG_DFL)
            os.kill(os.getpid(), number)
        elif number == signal.SIGINT:
            raise KeyboardInterrupt
        else:
            raise SystemExit(128 + number)

    with listening(end):
        yield


@contextmanager
def listening(handler: Handler) -> Iterator[None]:
    """While the block runs, these signals go to a handler; see `listen`."""
    before = listen(handler)
    try:
        yield
    finally:
        for number, earlier in before.items():
            signal.signal(number, earlier)


def listen(handler: Handler) -> dict[signal.Signals, Any]:
    """Install a handler for every signal that isn't ignored (as SIGHUP is under nohup).

    Returns:
        What handled them before.
    """
    heard = [number for number in ENDING if signal.getsignal(number) not in (signal.SIG_IGN, None)]
    return {number: signal.signal(number, handler) for number in heard}
