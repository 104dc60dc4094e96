"""Sizes are compared with the machine's before anything is allocated."""

from pathlib import Path

import psutil

from versatileffn.errors import ResourceError

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
            f"{what} needs {readable(needed)} of memory, {readable(available)} are available: "
            f"{remedy}"
        )


def readable(size: int) -> str:
    """Bytes as people read them, rounded up in the last digit so that a need is never named less.

    Source: SI prefixes, 1 kB = 1000 bytes.
    """
    if size < 1000:
        return f"{size} bytes"
    for power, unit in enumerate(("kB", "MB", "GB", "TB", "PB"), start=1):
        if size < 1000 ** (power + 1):
            break
    else:
        return "more than 1,000 PB"
    tenths = -(-size * 10 // 1000**power)
    return f"{tenths // 10}.{tenths % 10} {unit}"
