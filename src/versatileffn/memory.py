"""What fits into memory: compared with what there is before it is taken, and told if it doesn't.

Linux hands out more memory than there is and kills whoever uses it, without a word; so what a
config or a command line asks for is added up first.
"""

import errno
import re
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import psutil
import torch

from versatileffn.errors import ResourceError
from versatileffn.workspace.durable import size_text

CGROUP_FILES = (
    ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory.current"),
    (
        "/sys/fs/cgroup/memory/memory.limit_in_bytes",
        "/sys/fs/cgroup/memory/memory.usage_in_bytes",
    ),
)
"""Limit and use of a container, in bytes: version 2 and version 1. `memory.stat` lies beside."""
CACHE = {"inactive_file", "active_file"}
"""What of the use are copies of files, which make room when it is needed."""
_TOO_LITTLE = re.compile("(can't|Cannot) allocate memory|out of memory|[Nn]ot enough memory")


def available_memory(device: torch.device | str = "cpu") -> int:
    """Bytes that this process can still get: on a GPU, or in main memory, container or not."""
    device = torch.device(device)
    if device.type == "cuda":
        kept = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return int(torch.cuda.mem_get_info(device)[0]) + kept
    available = int(psutil.virtual_memory().available + psutil.swap_memory().free)
    for limit_file, used_file in CGROUP_FILES:
        try:
            limit, used = int(Path(limit_file).read_text()), int(Path(used_file).read_text())
        except (OSError, ValueError):  # no such container, or `max`
            continue
        used -= _cached(Path(used_file).with_name("memory.stat"))
        return min(available, max(limit - used, 0))
    return available


def total_memory() -> int:
    """Bytes of main memory that this machine has for all processes together, container or not."""
    total = int(psutil.virtual_memory().total + psutil.swap_memory().total)
    for limit_file, _ in CGROUP_FILES:
        with suppress(OSError, ValueError):  # no such container, or `max`
            return min(total, int(Path(limit_file).read_text()))
    return total


def _cached(statistics: Path) -> int:
    """Bytes of files that a container keeps in memory, as far as the system says."""
    try:
        entries = [line.split() for line in statistics.read_text().splitlines()]
        return sum(int(value) for name, value in entries if name in CACHE)
    except (OSError, ValueError):
        return 0


def check_memory(
    needed: int, what: str, remedy: str, device: torch.device | str = "cpu", processes: int = 1
) -> None:
    """Refuse what can't fit before it is allocated.

    Args:
        needed: bytes, an underestimate.
        what: what needs them.
        remedy: what to do about it.
        device: where.
        processes: how many need as much, in one main memory. How far the others are is unknown, so
            all of them are compared with all there is.

    Raises:
        ResourceError: they aren't there; both sizes are named.
    """
    available = available_memory(device)
    if needed > available:
        raise ResourceError(
            f"{what} needs {size_text(needed)} of memory, {size_text(available)} are available: "
            f"{remedy}"
        )
    if processes > 1 and processes * needed > (total := total_memory()):
        raise ResourceError(
            f"{what} needs {size_text(needed)} of memory in each of {processes} processes of this "
            f"machine, which has {size_text(total)}: {remedy}, or start fewer"
        )


def forward_bytes(model: Any, tokens: int, scored: int, training: bool = False) -> int:
    """What a forward pass takes at the very least: some hidden states, and logits.

    Args:
        model: a causal language model.
        tokens: that it reads at once, padding included.
        scored: how many of them get logits.
        training: the states of all layers are kept, and logits have a gradient.
    """
    embedding = model.get_input_embeddings().weight
    vocabulary, d_model = embedding.shape
    layers = model.config.get_text_config().num_hidden_layers if training else 1
    numbers = 4 * d_model * tokens * layers + vocabulary * scored * (1 + training)
    return int(numbers * embedding.dtype.itemsize)


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
    if isinstance(error, OSError):
        return error.errno == errno.ENOMEM
    native = isinstance(error, RuntimeError | ValueError)  # the latter is orjson's
    return native and _TOO_LITTLE.search(str(error)) is not None


def raise_out_of_memory(error: Exception) -> None:
    """Raise an error again if it says that memory ran out.

    For whoever takes any error of a loader's for a damaged file: this one isn't the file's fault.
    """
    if is_out_of_memory(error):
        raise error
