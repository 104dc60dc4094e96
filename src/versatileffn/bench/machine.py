"""What measurements depend on: machine, versions, sources, and how memory is handed out."""

import os
import platform
from pathlib import Path
from typing import Any

import torch

import versatileffn
from versatileffn.provenance import source_digest, versions

LIBRARIES = ("torch", "transformers", "numpy")
MEASURED = ("ffn", "execution", "models", "bench")
"""Folders whose sources a time depends on."""
DRAWN = ("report.py", "goals.py", "plot.py")
"""Files of this folder that only show what was measured."""

TUNED = {"MALLOC_MMAP_MAX_": "0", "MALLOC_TRIM_THRESHOLD_": "-1"}
"""glibc: large blocks come from the heap, and the heap is never given back.

By default glibc asks the kernel for every large block anew, and the kernel clears each of its pages
on first touch: an elementwise step over 16 MB then takes several times as long, on all sides and
with a spread that hides what is compared. Other C libraries ignore these variables."""


def worker_environment(environment: str, threads: int) -> dict[str, str]:
    """Environment variables of a measuring process.

    Args:
        environment: `tuned`, or `default` for the allocator as it is.
        threads: of torch and of everything below it.
    """
    kept = {name: value for name, value in os.environ.items() if not name.startswith("MALLOC_")}
    kept.pop("GLIBC_TUNABLES", None)
    root = str(Path(versatileffn.__file__).parents[1])
    paths = [root, *filter(None, [kept.get("PYTHONPATH")])]
    kept |= {"OMP_NUM_THREADS": str(threads), "PYTHONPATH": os.pathsep.join(paths)}
    return kept | (TUNED if environment == "tuned" else {})


def measured_sources() -> str:
    """Digest of the sources that are measured or measure."""
    return source_digest(MEASURED, DRAWN)


def measured_versions() -> dict[str, str]:
    """Versions of everything that a time could depend on."""
    return versions(*LIBRARIES) | {"libc": "-".join(platform.libc_ver())}


def device_record(device: str) -> dict[str, Any]:
    """The device, without naming the machine."""
    on_cuda = torch.device(device).type == "cuda"
    name = torch.cuda.get_device_name(device) if on_cuda else f"CPU ({_cpu_model()})"
    return {"name": name, "cores": os.cpu_count()}


def _cpu_model() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.machine()
    models = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return models[0] if models else platform.machine()
