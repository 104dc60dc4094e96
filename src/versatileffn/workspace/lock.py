"""A folder held by one process; the system lets go of it however the process ends."""

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from versatileffn.errors import ConfigError, VersatileFFNError
from versatileffn.workspace.durable import open_own, writing

LOCK = ".lock"


@contextmanager
def locked(
    folder: Path, what: str, error_class: type[VersatileFFNError] = ConfigError
) -> Iterator[None]:
    """Hold an existing folder for this process.

    Processes forked from this one share the lock, so it is held until the last of them has ended.

    Args:
        folder: to be held, by the file `.lock` in it. The file stays, for nobody may delete it
            whom another process could be waiting behind.
        what: how to call the folder in the error.
        error_class: what is raised.

    Raises:
        error_class: another process holds it, or the lock can't be made.
    """
    with writing(folder / LOCK, error_class):
        handle = _hold(folder / LOCK)
    if handle is None:
        raise error_class(f"another run is using {what}: wait for it, or choose another folder")
    with handle:
        yield


def _hold(path: Path) -> BinaryIO | None:
    """The open lock, or None where another process holds it."""
    while True:
        handle = open_own(path, 0)
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if path.exists() and os.path.samestat(os.fstat(handle.fileno()), path.stat()):
                return handle
            handle.close()  # its folder was removed while we opened it: that file locks nobody
        except BlockingIOError:
            handle.close()
            return None
        except OSError:
            handle.close()
            raise
