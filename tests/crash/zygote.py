"""Runs verbs in forks of a process that has imported everything: tenths of seconds, not eight.

The process is started with the shim loaded; a child wakes it by its environment, before its work.
"""

import json
import os
import subprocess
import sys
import time
from collections.abc import Mapping
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
        log: file for what children print.
        shim: library to load; None loads none.
        imports: modules to import at once.
    """

    def __init__(self, log: Path, shim: Path | None, imports: tuple[str, ...] = PRELOADED) -> None:
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
            text=True,
            env=environment,
        )

    def start(self, command: list[str], environment: Mapping[str, str], folder: Path) -> None:
        """Begin a command; its first word is the function to call, as `module:function`."""
        assert self.process.stdin is not None
        request = {
            "command": command,
            "environment": dict(environment),
            "folder": str(folder),
            "log": str(self.log),
        }
        self.process.stdin.write(json.dumps(request) + "\n")
        self.process.stdin.flush()

    def wait(self) -> Ended:
        """The end of the command that was begun."""
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        if not line:
            raise RuntimeError("the process that forks is gone")
        return Ended(**json.loads(line), output=self.log.read_text(errors="replace"))

    def close(self) -> None:
        """End the process."""
        assert self.process.stdin is not None
        self.process.stdin.close()
        self.process.wait()


def _child(request: dict[str, Any]) -> int:
    import atexit
    import importlib
    import traceback

    os.setsid()  # the group that a SIGKILL ends
    out = os.open(request["log"], os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    nothing = os.open(os.devnull, os.O_RDONLY)
    for source, target in ((nothing, 0), (out, 1), (out, 2)):
        os.dup2(source, target)
    os.chdir(request["folder"])
    module, _, name = request["command"][0].partition(":")
    sys.argv = ["versatileffn", *request["command"][1:]]
    os.environ.update(request["environment"])
    code = 0
    try:
        getattr(importlib.import_module(module), name)()
    except SystemExit as stop:
        code = stop.code if isinstance(stop.code, int) else int(stop.code is not None)
    except BaseException:
        traceback.print_exc()
        code = 70
    atexit._run_exitfuncs()
    sys.stdout.flush()
    sys.stderr.flush()
    return code


def main() -> None:
    """Fork for each line of standard input, and say how the child ended."""
    import importlib

    for name in sys.argv[1:]:
        importlib.import_module(name)
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    for line in sys.stdin:
        began = time.monotonic()
        child = os.fork()
        if child == 0:
            os._exit(_child(json.loads(line)))
        status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        answers.write(json.dumps({"code": status, "seconds": time.monotonic() - began}) + "\n")
        answers.flush()


if __name__ == "__main__":
    main()
