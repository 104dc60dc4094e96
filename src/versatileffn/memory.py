"""Sizes are compared with the machine's before anything is allocated."""

from pathlib import Path

import psutil

from versatileffn.errors import ResourceError
from versatileffn.workspace.durable import size_text

CGROUP_FILES = (
    ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory.current"),
    (
        "/sys/fs/cgroup/memory/memory.limit_in_bytes",
        "/sys/fs/cgroup/memory/memory.usage_in_bytes",
    ),
)
"""Limit and use of a container, in bytes: version 2 and version 1."""


def available_memory() -> int:
    """Bytes of main memory that this process can still get, in a container or out of one."""
    available = psutil.virtual_memory().available + psutil.swap_memory().free
    for limit_file, used_file in CGROUP_FILES:
        try:
            limit, used = int(Path(limit_file).read_text()), int(Path(used_file).read_text())
        except (OSError, ValueError):  # no such container, or `max`
            continue
        return min(available, max(limit - used, 0))
    return available


def check_memory(needed: int, what: str, remedy: str) -> None:
    """Refuse what can't fit before it is allocated.

    Args:
        needed: bytes of main memory, an underestimate.
        what: what needs them.
        remedy: what to do about it.

    Raises:
        ResourceError: they aren't there; both sizes are named.
    """
    available = available_memory()
    if needed > available:
        raise ResourceError(
            f"{what} needs {size_text(needed)} of memory, {size_text(available)} are available: "
            f"{remedy}"
        )
