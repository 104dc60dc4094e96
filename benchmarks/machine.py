"""What measurements depend on: how memory is handed out, the processor, versions."""

import os
import platform
import sys
from pathlib import Path
from typing import Any

from versatileffn.provenance import versions

ROOT = Path(__file__).resolve().parents[1]
TUNED = {"MALLOC_MMAP_MAX_": "0", "MALLOC_TRIM_THRESHOLD_": "-1"}
"""glibc: large blocks come from the heap, and the heap is never given back.

By default glibc asks the kernel for every large block anew, and the kernel clears each of its pages
on first touch: an elementwise step over 16 MB then takes several times as long, on all sides and
with a spread that hides what is compared. Other C libraries ignore these variables."""


def be_tuned() -> None:
    """Begin this very process again with the allocator tuned, unless it is."""
    if any(os.environ.get(name) != value for name, value in TUNED.items()):
        os.execve(sys.executable, sys.orig_argv, os.environ | TUNED)


def measured_versions() -> dict[str, str]:
    """Versions of everything that a time could depend on."""
    libc = {"libc": "-".join(platform.libc_ver())}
    return versions("torch", "transformers", "numpy") | libc


def cpu_record() -> dict[str, Any]:
    """The processor, without naming the machine."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []
    models = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return {"name": f"CPU ({[*models, platform.machine()][0]})", "cores": os.cpu_count()}
