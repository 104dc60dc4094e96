"""Environments to measure in: how the C library hands out memory, and new processes.

glibc returns large freed blocks to the kernel, which clears each page anew on the next first touch:
an elementwise step over 16 MB then takes several times as long, on all sides and with a spread that
hides what is compared. Other C libraries ignore these variables.
"""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
TUNED = {"MALLOC_MMAP_MAX_": "0", "MALLOC_TRIM_THRESHOLD_": "-1"}
"""Large blocks come from the heap, and the heap is never given back."""
CALL = """
import json, sys
from benchmarks.{module} import {function}
print(json.dumps({function}(**json.loads(sys.argv[1]))))
"""


def be_tuned() -> None:
    """Begin this process again with the allocator tuned, unless it is."""
    if any(os.environ.get(name) != value for name, value in TUNED.items()):
        os.execve(sys.executable, sys.orig_argv, os.environ | TUNED)


def end_children_too() -> None:
    """Let SIGTERM raise SystemExit, upon which `subprocess.run` kills the process it waits for."""
    signal.signal(signal.SIGTERM, lambda number, _: sys.exit(128 + number))


def in_new_process(module: str, function: str, **settings: Any) -> Any:
    """Call a function of this package in a process with the allocator as it is by default.

    Args:
        module, function: its names.
        settings: its arguments, JSON.

    Returns:
        What it returns, through JSON.
    """
    kept = {name: value for name, value in os.environ.items() if name not in TUNED}
    paths = [str(ROOT), str(ROOT / "src"), *filter(None, [kept.get("PYTHONPATH")])]
    finished = subprocess.run(
        [sys.executable, "-c", CALL.format(module=module, function=function), json.dumps(settings)],
        env=kept | {"PYTHONPATH": os.pathsep.join(paths)},
        check=True,
        stdout=subprocess.PIPE,
        text=True,
    )
    return json.loads(finished.stdout.splitlines()[-1])
