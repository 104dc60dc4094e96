"""What measurements depend on: machine, versions, sources, and how memory is handed out."""

import hashlib
import os
import platform
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

import versatileffn

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


def source_digest() -> str:
    """SHA-256 of the sources that are measured or measure."""
    root = Path(versatileffn.__file__).parent
    digest = hashlib.sha256()
    for path in sorted(path for folder in MEASURED for path in (root / folder).rglob("*.py")):
        if path.name not in DRAWN:
            digest.update(f"{path.relative_to(root).as_posix()}\0".encode())
            digest.update(path.read_bytes())
    return digest.hexdigest()


def versions() -> dict[str, str]:
    """Versions of everything that a time could depend on."""
    try:
        own = metadata.version("versatileffn")
    except metadata.PackageNotFoundError:
        own = "source tree"
    found = {name: metadata.version(name) for name in LIBRARIES}
    libc = "-".join(platform.libc_ver())
    return {"versatileffn": own, "python": platform.python_version(), "libc": libc, **found}


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
