"""What fits into memory: estimated before it is taken, and told in one line where it doesn't.

Linux hands out more memory than there is and kills whoever uses it, without a word; so what a
number on the command line asks for is added up first.
"""

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import psutil
import torch

from versatileffn.errors import ResourceError
from versatileffn.workspace.durable import size_text

CGROUP = Path("/sys/fs/cgroup")
_TOO_LITTLE = ("can't allocate memory", "out of memory", "Cannot allocate memory")


def available_bytes(device: torch.device | str = "cpu") -> int:
    """Memory that may still be taken on a device; on the CPU a container's limit counts, too."""
    device = torch.device(device)
    if device.type == "cuda":
        free = torch.cuda.mem_get_info(device)[0]
        return free + torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    free = int(psutil.virtual_memory().available)
    with suppress(OSError, ValueError):  # no container, or none with a limit
        limit, used = (int((CGROUP / f"memory.{name}").read_text()) for name in ("max", "current"))
        stat = (CGROUP / "memory.stat").read_text().split()
        cached = int(stat[stat.index("inactive_file") + 1])
        free = min(free, limit - used + cached)
    return max(0, free)


def check_memory(what: str, needed: int, device: torch.device | str, remedy: str) -> None:
    """Raise ResourceError unless so many bytes may be taken on a device.

    Args:
        what: who needs them, for the error.
        needed: bytes; a lower bound, so that nothing that fits is refused.
        device: where.
        remedy: what to do about it, for the error.
    """
    available = available_bytes(device)
    if needed > available:
        raise ResourceError(
            f"{what} needs at least {size_text(needed)} of memory, and {size_text(available)} "
            f"are available ({torch.device(device).type}): {remedy}"
        )


@contextmanager
def naming_memory(what: str, remedy: str) -> Iterator[None]:
    """Turn running out of memory into an error that says what to do.

    Raises:
        ResourceError: it ran out.
    """
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        if not is_out_of_memory(error):
            raise
        raise ResourceError(f"{what} ran out of memory: {remedy}") from error


def is_out_of_memory(error: Exception) -> bool:
    """Whether an error says that memory ran out; on the CPU PyTorch says so in words only."""
    if isinstance(error, MemoryError | torch.OutOfMemoryError):
        return True
    return isinstance(error, RuntimeError) and any(text in str(error) for text in _TOO_LITTLE)
