"""A folder that appears whole or not at all."""

import fcntl
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from versatileffn.data.meta import META_FILE
from versatileffn.errors import DataError, VersatileFFNError

_TOKEN_FOLDER_ENTRIES = {META_FILE, "tokenizer", "train", "val"}
_LOCK = ".lock"


def check_output(output: Path, overwrite: bool) -> None:
    """Raise DataError unless `output` may be written: it is free, or a token folder to replace."""
    if output.exists() and not output.is_dir():
        raise DataError(f"{output}: a file is in the way; choose another --out")
    entries = {path.name for path in output.iterdir()} if output.exists() else set()
    if not entries:
        return
    if not entries <= _TOKEN_FOLDER_ENTRIES:
        other = sorted(entries - _TOKEN_FOLDER_ENTRIES)[0]
        raise DataError(
            f"{output}: not empty and not a token folder (it has {other}), so it won't be "
            "replaced; choose another --out"
        )
    if not overwrite:
        raise DataError(f"{output}: not empty; choose another --out, or replace it by --overwrite")


@contextmanager
def replacing(output: Path, key: str, overwrite: bool) -> Iterator[Path]:
    """Give a folder beside `output` to fill; rename it into place at the end.

    After bad input the folder is removed. After an interruption it stays, and the same `key`
    gets it again, so that the work continues.

    Args:
        output: the folder to make.
        key: what names this very piece of work, a few characters.
        overwrite: replace an existing token folder.

    Raises:
        DataError: `output` may not or can't be written, or someone else is at it.
    """
    check_output(output, overwrite)
    partial = output.parent / f"{output.name}.partial-{key}"
    try:
        partial.mkdir(parents=True, exist_ok=True)
        lock = (partial / _LOCK).open("w")
    except OSError as error:
        raise DataError(f"{output}: can't be written ({error.strerror}); choose another") from error
    with lock:  # the lock ends with the process, however that ends, and children don't inherit it
        try:
            fcntl.lockf(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise DataError(f"{partial}: another run is writing here; wait for it") from error
        try:
            yield partial
            (partial / _LOCK).unlink()
            _publish(partial, output, overwrite)
        except VersatileFFNError:
            shutil.rmtree(partial, ignore_errors=True)
            raise


def _publish(partial: Path, output: Path, overwrite: bool) -> None:
    check_output(output, overwrite)  # again: time has passed
    if not output.exists():
        partial.rename(output)
        return
    old = output.parent / f"{output.name}.old-{partial.name.rpartition('-')[2]}"
    output.rename(old)
    partial.rename(output)
    shutil.rmtree(old)
