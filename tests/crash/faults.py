"""What may fail in a call to the system, and what a command must say of it."""

import errno
import os
import re
from collections.abc import Callable
from dataclasses import dataclass

from crash.points import SHORT, Message

ALLOCATIONS = 32 * 1024
"""Bytes from which on an allocation counts: tensors, texts and buffers, not the interpreter's own
small objects, whose failing no program survives."""

REMEDY = re.compile(
    r"\b(free some|free [\d.,]+ .iB|choose|run the same command|the same command|restore|delete"
    r"|take a smaller|with more|make it writable|lower)\b"
)
"""What a user can do, in the words of our errors."""

_WRITING = ("open", "open, truncating", "write", "write, second half", "truncate", "map")
_NAMES = ("mkdir", "rmdir", "unlink", "remove", "rename", "exchange", "link", "symlink")
_CHANGES = (*_WRITING, *_NAMES)
_GROWING = ("write", "write, second half", "mkdir", "link", "symlink")
_NEEDS_SPACE = (*_GROWING, "open", "open, truncating", "rename", "exchange", "fsync")


@dataclass(frozen=True)
class Fault:
    """A way to fail.

    Args:
        name: for the table.
        number: the errno; SHORT writes half.
        calls: which calls can fail so.
        after: whether a later call fails, too, once the first has.
        cause: a pattern for what must be said.
    """

    name: str
    number: int
    calls: tuple[str, ...]
    after: Callable[[Message], bool]
    cause: str

    def takes(self, message: Message) -> bool:
        """Whether this call can fail so: what only opens a file that is there needs no space."""
        if self.number == errno.ENOSPC and message.call == "open":
            return not os.path.lexists(message.path)
        return message.call in self.calls


def _never(message: Message) -> bool:
    return False


def _no_space(message: Message) -> bool:
    """A disk stays full: nothing grows and nothing new is made."""
    new = message.call.startswith("open") and not os.path.lexists(message.path)
    return new or message.call in _GROWING


def _read_only(message: Message) -> bool:
    return message.call in _CHANGES


FULL = Fault("disk full", errno.ENOSPC, _NEEDS_SPACE, _no_space, "the disk is full")
BROKEN = Fault("I/O error", errno.EIO, (*_CHANGES, "fsync"), _never, "Input/output error")
READ_ONLY = Fault("read-only", errno.EROFS, _CHANGES, _read_only, "Read-only file system")
SHORTENED = Fault("short write", SHORT, ("write",), _never, "(?!)")
NO_MEMORY = Fault("no memory", errno.ENOMEM, ("allocate",), _never, "memory")
FAULTS = (FULL, BROKEN, READ_ONLY, SHORTENED, NO_MEMORY)
