"""Outputs are written beside their place and renamed into it: half-written ones never count."""

import errno
import fcntl
import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from versatileffn.errors import ConfigError

PARTIAL = ".partial"
LOCK = ".lock"


def beside(path: Path) -> Path:
    """Where a file of ours is written before it is renamed into place."""
    return path.with_name(f".{path.name}{PARTIAL}")


def write_json(path: Path, content: Any) -> None:
    """Write strict JSON (no NaN), atomically.

    Raises:
        ValueError: a number is not finite.
    """
    partial = beside(path)
    text = json.dumps(content, indent=2, allow_nan=False, ensure_ascii=False)
    partial.write_text(text + "\n", encoding="utf-8")
    os.replace(partial, path)


def check_file(path: Path) -> None:
    """Make a file's folder, and make sure that the file can be put there.

    Raises:
        ConfigError: it can't.
    """
    with writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.is_dir():
            raise IsADirectoryError(errno.EISDIR, "it is a folder")


def check_free(path: Path, marker: str, overwrite: bool = False) -> Path:
    """Refuse to write where something else is; the folder to write, with links followed.

    Args:
        path: the folder that is wanted.
        marker: a file that every folder of this kind holds; only such a folder is ever replaced.
        overwrite: replace an older folder of this kind.

    Raises:
        ConfigError: the place is taken, or can't be written.
    """
    with writing(path):
        target = path.expanduser().resolve()
        if target.is_dir():
            occupied = any(target.iterdir())
        elif os.path.lexists(path) or os.path.lexists(target):
            raise ConfigError(f"{path} is in the way and not a folder: choose another output")
        else:
            occupied = False
    if occupied and not (target / marker).is_file():
        raise ConfigError(
            f"{path} already exists and wasn't written by this command (it has no {marker}), so it "
            "is never replaced: choose another output"
        )
    if occupied and not overwrite:
        raise ConfigError(f"{path} already exists: choose another output, or pass --overwrite")
    return target


@contextmanager
def new_folder(path: Path, marker: str, overwrite: bool = False) -> Iterator[Path]:
    """A folder to fill; it appears at `path` only when the block ends without an error.

    An older folder stays in place until then. What a killed run left beside it is removed.

    Args:
        path, marker, overwrite: see `check_free`; the block must write `marker`.

    Raises:
        ConfigError: the place is taken, or can't be written.
    """
    target = check_free(path, marker, overwrite)
    with writing(path):
        target.parent.mkdir(parents=True, exist_ok=True)
        _remove_abandoned(target)
        work = Path(tempfile.mkdtemp(prefix=f".{target.name}.", suffix=PARTIAL, dir=target.parent))
    try:
        with locked(work, str(work)):
            new = work / "new"
            new.mkdir()
            yield new
            target = check_free(path, marker, overwrite)  # again: time has passed
            with writing(path):
                if target.exists():
                    os.replace(target, work / "old")
                os.replace(new, target)
    finally:
        shutil.rmtree(work, ignore_errors=True)


@contextmanager
def locked(folder: Path, what: str) -> Iterator[None]:
    """Hold a folder for this process; the system lets go of it however the process ends.

    Args:
        folder: an existing folder.
        what: how to call it in the error.

    Raises:
        ConfigError: another process holds it.
    """
    with (folder / LOCK).open("w") as handle:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise ConfigError(
                f"another run is using {what}: wait for it, or choose another folder"
            ) from None
        yield


def _remove_abandoned(target: Path) -> None:
    """Remove work folders for `target` that no living process holds."""
    for work in target.parent.glob(f".{target.name}.*{PARTIAL}"):
        if (work / LOCK).is_file():
            with suppress(ConfigError), locked(work, str(work)):
                shutil.rmtree(work, ignore_errors=True)


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Turn what the system says against a path into an error that names it."""
    try:
        yield
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise ConfigError(f"{path} can't be written ({reason}): choose another output") from None
