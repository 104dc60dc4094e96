"""Where a number comes from: versions of packages, the machine, digest of our sources."""

import hashlib
import os
import platform
from collections.abc import Iterable
from importlib import metadata
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent
"""Of this package's sources."""


def versions(*libraries: str) -> dict[str, str]:
    """Versions of this package, of Python, and of libraries by their distributions' names.

    This package runs from a `source tree`, too, where nothing is installed.
    """
    found = {"versatileffn": "source tree", "python": platform.python_version()}
    for name in ("versatileffn", *libraries):
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            found.setdefault(name, "not installed")
    return found


def device_name(device: Any) -> str:
    """What a torch device is called: the accelerator's name, or the processor's architecture."""
    if device.type == "cuda":
        import torch

        return torch.cuda.get_device_name(device)
    return f"{device.type} ({platform.machine()})"


def machine(accelerator: bool = True) -> dict[str, Any]:
    """What computes here, not by the machine's name: the accelerator, if any, else the CPU."""
    import torch

    name = f"CPU ({_cpu_model()})"
    if accelerator and torch.cuda.is_available():
        name = torch.cuda.get_device_name()
    return {"name": name, "threads": torch.get_num_threads(), "cores": os.cpu_count()}


def _cpu_model() -> str:
    """The processor as Linux calls it; its architecture elsewhere."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []
    models = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return models[0] if models else platform.machine()


def source_digest(folders: Iterable[str] = (".",), without: Iterable[str] = ()) -> str:
    """SHA-256 of source files of this package: other code may give other results.

    Args:
        folders: below the package; by default all of it.
        without: names of files that don't count.
    """
    left_out = set(without)
    paths = {path for folder in folders for path in (ROOT / folder).rglob("*.py")}
    digest = hashlib.sha256()
    for path in sorted(paths):
        if path.name not in left_out:
            digest.update(f"{path.relative_to(ROOT).as_posix()}\0".encode())
            digest.update(path.read_bytes())
    return digest.hexdigest()
