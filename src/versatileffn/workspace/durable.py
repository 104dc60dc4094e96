"""Files that survive: written beside their place, synced, renamed into it, links never followed.

A rename is atomic, so a killed process leaves the old file or the new one. Losing power is worse:
what wasn't synced may be gone, content and names each on their own. So content is synced before the
rename, and the folder after it.
"""

import errno
import json
import os
import re
import shutil
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, BinaryIO

from versatileffn.errors import ConfigError, ResourceError, VersatileFFNError

PARTIAL = ".partial"
FULL = (errno.ENOSPC, errno.EDQUOT)
FAILING = (*FULL, errno.EIO, errno.EROFS)
"""What the system says of a disk that takes nothing, whatever the file."""
_TORCH_CANT_WRITE = re.compile(r"PytorchStreamWriter|inline_container|iostream error")
"""What `torch.save` says of it: that it failed, and not why."""


def beside(path: Path) -> Path:
    """Where a file of ours is written before it is renamed into place."""
    return path.with_name(f".{path.name}{PARTIAL}")


def open_own(path: Path, flags: int) -> BinaryIO:
    """Open a file of ours for writing; a link in its place is refused, not followed.

    Args:
        path: the file; made if it isn't there.
        flags: of `os.open`, e.g. `os.O_APPEND`.
    """
    descriptor = os.open(path, flags | os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o666)
    return os.fdopen(descriptor, "ab" if flags & os.O_APPEND else "r+b")


def write_bytes(path: Path, content: bytes) -> None:
    """Write a file so that, whatever happens, it is the old one or the new one."""
    partial = beside(path)
    remove([partial])
    with open_own(partial, os.O_EXCL) as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    rename(partial, path)


def write_json(path: Path, content: Any) -> None:
    """Write strict JSON (no NaN), see `write_bytes`; a name that isn't UTF-8 comes back as it was.

    Raises:
        ValueError: a number is not finite.
    """
    text = json.dumps(content, indent=2, allow_nan=False, ensure_ascii=False)
    write_bytes(path, (text + "\n").encode("utf-8", "backslashreplace"))


def append(path: Path, content: bytes) -> None:
    """Add to the end of a file, and have it on disk when this returns."""
    new = not path.exists()
    with open_own(path, os.O_APPEND) as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    if new:
        sync(path.parent)


def sync(path: Path) -> None:
    """Have a file's content, or the names in a folder, on disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def sync_tree(folder: Path) -> None:
    """Have everything below a folder on disk."""
    for parent, _, files in os.walk(folder, topdown=False, onerror=stop):
        for name in files:
            path = Path(parent, name)
            if not path.is_symlink():
                sync(path)
        sync(Path(parent))


def stop(error: OSError) -> None:
    """For `os.walk`, which passes over what it can't read unless it is told not to.

    Raises:
        OSError: the one that it would pass over.
    """
    raise error


def rename(source: Path, target: Path) -> None:
    """Give something synced its name; both folders are on disk when this returns."""
    os.replace(source, target)
    sync(target.parent)
    if source.parent != target.parent:
        sync(source.parent)


def make_folder(path: Path) -> None:
    """Make a folder and those above it, where they aren't, and have their names on disk."""
    if not path.is_dir():
        make_folder(path.parent)
        path.mkdir(exist_ok=True)
        sync(path.parent)


def set_aside(path: Path, aside: Path) -> Path:
    """Rename what can't be taken as it is, to `aside` or the first free name after it; that one."""
    make_folder(aside.parent)
    number, target = 2, aside
    while os.path.lexists(target):
        number, target = number + 1, aside.with_name(f"{aside.name}-{number}")
    rename(path, target)
    return target


def remove(paths: Iterable[Path]) -> None:
    """Delete files and folders of ours, where they exist; of a link, the link."""
    for path in paths:
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)


def free_bytes(path: Path) -> int:
    """What may still be written where `path` is, or will be."""
    while not path.exists() and path != path.parent:
        path = path.parent
    return shutil.disk_usage(path).free


def size_text(count: int) -> str:
    """Bytes as a person reads them."""
    return f"{count / 2**30:,.1f} GiB" if count >= 2**30 else f"{count / 2**20:,.1f} MiB"


def check_space(path: Path, needed: int) -> None:
    """Raise ResourceError unless so many bytes can be written at `path`."""
    free = free_bytes(path)
    if needed > free:
        raise ResourceError(
            f"{path} needs {size_text(needed)} and the disk has {size_text(free)} free: free "
            f"{size_text(needed - free)}, or choose another place"
        )


def check_file(path: Path) -> None:
    """Make a file's folder, and make sure that the file can be put there.

    Raises:
        ConfigError: it can't.
    """
    with writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.is_dir():
            raise IsADirectoryError(errno.EISDIR, "it is a folder")


@contextmanager
def writing(path: Path, error_class: type[VersatileFFNError] = ConfigError) -> Iterator[None]:
    """Turn what the system says against a path into an error that names it.

    Raises:
        ResourceError: the disk is full, or fails.
        error_class: anything else.
    """
    try:
        yield
    except VersatileFFNError:
        raise
    except Exception as error:
        number = system_error(error)
        if number is None and _TORCH_CANT_WRITE.search(str(error)):
            number = _asked_again(path)
        if number in FULL:
            raise ResourceError(
                f"{path} can't be written: the disk is full ({size_text(free_bytes(path))} free). "
                "Free some space and run the same command again"
            ) from error
        if number == errno.EIO:
            raise ResourceError(
                f"{path} can't be written ({os.strerror(number)}): see to the disk and run the "
                "same command again, or choose another output"
            ) from error
        systems = number is not None or isinstance(error, OSError | UnicodeError)
        if number == errno.ENOMEM or not (systems or "null byte" in str(error)):
            raise  # no other output would mend it: too little memory, or a defect of ours
        reason = os.strerror(number) if number else error
        raise error_class(f"{path} can't be written ({reason}): choose another output") from error


def _asked_again(path: Path) -> int:
    """The system's number for a small write at `path`; EIO where this one succeeds."""
    probe = beside((path if path.is_dir() else path.parent) / "probe")
    try:
        with open_own(probe, os.O_TRUNC) as file:
            file.write(bytes(4096))
            file.flush()
            os.fsync(file.fileno())
    except OSError as error:
        return error.errno or errno.EIO
    finally:
        with suppress(OSError):
            probe.unlink(missing_ok=True)
    return errno.EIO


def system_error(error: BaseException) -> int | None:
    """The system's number for an error; of native code's, which are words only, one of FAILING."""
    if isinstance(error, OSError) and error.errno is not None:
        return error.errno
    return next((number for number in FAILING if os.strerror(number) in str(error)), None)
