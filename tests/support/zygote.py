"""Runs programs in forks of a process that has imported everything: tenths of seconds, not eight.

A fork is a process like any other: it has a session, an environment and streams of its own, hears
signals, dies of them. What isn't tried is the importing. (A shim may be loaded: a child wakes it by
its environment, before its work.)
"""

import json
import os
import select
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

PRELOADED = (
    "versatileffn.cli.main",
    "versatileffn.data.tokenize",
    "versatileffn.training.run",
    "versatileffn.evaluation.task_scores",
    "versatileffn.evaluation.perplexity",
    "versatileffn.reproduce.run",
    "versatileffn.analysis.curves",
    "versatileffn.upcycle",
    "matplotlib.pyplot",
)


@dataclass(frozen=True)
class Ended:
    """How a command came out: exit code (negative: the signal), what it printed, seconds."""

    code: int
    output: str
    seconds: float

    @property
    def last_line(self) -> str:
        """What an error says."""
        return (self.output.strip().splitlines() or [""])[-1]


class Zygote:
    """The process that forks.

    Args:
        log: file for what `start` has children print.
        shim: library to load; None loads none.
        imports: modules to import at once.
    """

    def __init__(
        self,
        log: Path = Path(os.devnull),
        shim: Path | None = None,
        imports: tuple[str, ...] = PRELOADED,
    ) -> None:
        self.log = log
        preload = {"LD_PRELOAD": str(shim)} if shim else {}
        path = os.pathsep.join(part for part in sys.path if part)
        environment = {
            **os.environ,
            **preload,
            "PYTHONPATH": path,
            "OMP_NUM_THREADS": "1",
            "HF_HUB_OFFLINE": "1",
        }
        self.process = subprocess.Popen(
            [sys.executable, __file__, *imports],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            bufsize=0,  # what is read here isn't waited for again
            env=environment,
        )

    def start(self, command: list[str], environment: Mapping[str, str], folder: Path) -> None:
        """Begin a command in one process, which prints into the log; see `fork`."""
        self.log.write_bytes(b"")
        self.fork(command, [environment], folder, (os.devnull, self.log, self.log))

    def fork(
        self,
        command: list[str],
        environments: Sequence[Mapping[str, str]],
        folder: Path,
        streams: tuple[str | Path, str | Path, str | Path],
    ) -> list[int]:
        """Begin a command in a process for each environment.

        Args:
            command: arguments, after what is to be run: a function as `module:function`, or `-c`
                and a program's text.
            environments: what differs from this process's.
            folder: to be in.
            streams: files to read from, to print into, and for errors.

        Returns:
            The processes' numbers, each also its group's.
        """
        request = {
            "command": command,
            "environments": [dict(environment) for environment in environments],
            "folder": str(folder),
            "streams": [str(stream) for stream in streams],
        }
        assert self.process.stdin is not None
        self.process.stdin.write(f"{json.dumps(request)}\n".encode())
        return self._answer()["processes"]

    def ended(self, seconds: float | None = None) -> dict[str, Any]:
        """The end of the command that was begun: its processes' `codes`, and `seconds`.

        Raises:
            TimeoutError: it takes longer.
        """
        if not select.select([self.process.stdout], [], [], seconds)[0]:
            raise TimeoutError(f"it hasn't ended in {seconds:.0f} s")
        return self._answer()

    def wait(self) -> Ended:
        """The end of the command that was begun with `start`."""
        answer = self.ended()
        return Ended(answer["codes"][0], self.log.read_text(errors="replace"), answer["seconds"])

    def _answer(self) -> dict[str, Any]:
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        if not line:
            raise RuntimeError("the process that forks is gone")
        return json.loads(line)

    def close(self) -> None:
        """End the process."""
        assert self.process.stdin is not None
        self.process.stdin.close()
        self.process.wait()


def _child(request: dict[str, Any], environment: dict[str, str]) -> int:
    import atexit
    import traceback

    os.setsid()  # the group that a SIGKILL ends
    _open(request["streams"])
    for number in (signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1):
        signal.signal(number, signal.SIG_DFL)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    os.chdir(request["folder"])
    os.environ.update(environment)
    code = 0
    try:
        _run(request["command"])
    except SystemExit as stop:
        code = stop.code if isinstance(stop.code, int) else int(stop.code is not None)
    except BaseException:
        traceback.print_exc()
        code = 70
    atexit._run_exitfuncs()
    sys.stdout.flush()
    sys.stderr.flush()
    return code


def _open(streams: list[str]) -> None:
    """A terminal becomes this session's own, and lines are shown at once."""
    ways = (os.O_RDONLY, *2 * (os.O_WRONLY | os.O_CREAT | os.O_APPEND,))
    opened = [os.open(stream, way) for stream, way in zip(streams, ways, strict=True)]
    for target, source in enumerate(opened):
        os.dup2(source, target)
    sys.stdin, sys.stdout = os.fdopen(0, closefd=False), os.fdopen(1, "w", closefd=False)
    sys.stderr = os.fdopen(2, "w", 1, errors="backslashreplace", closefd=False)


def _run(command: list[str]) -> None:
    import importlib

    if command[0] == "-c":
        sys.argv = ["-c", *command[2:]]
        exec(compile(command[1], "<string>", "exec"), {"__name__": "__main__"})
    else:
        module, _, name = command[0].partition(":")
        sys.argv = ["versatileffn", *command[1:]]
        getattr(importlib.import_module(module), name)()


def main() -> None:
    """Fork for each line of standard input; say who began, and how each child ended."""
    import importlib

    for name in sys.argv[1:]:
        importlib.import_module(name)
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    for line in sys.stdin:
        began = time.monotonic()
        request, children = json.loads(line), []
        for environment in request["environments"]:
            child = os.fork()
            if child == 0:
                os._exit(_child(request, environment))
            children.append(child)
        print(json.dumps({"processes": children}), file=answers, flush=True)
        codes = [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children]
        ended = {"codes": codes, "seconds": time.monotonic() - began}
        print(json.dumps(ended), file=answers, flush=True)


if __name__ == "__main__":
    main()
