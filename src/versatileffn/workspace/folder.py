"""Folders that appear whole or not at all, and that never replace what isn't ours."""

import ctypes
import errno
import glob
import os
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from versatileffn.errors import ConfigError, ResourceError, VersatileFFNError
from versatileffn.workspace.durable import (
    PARTIAL,
    beside,
    make_folder,
    remove,
    rename,
    sync,
    sync_tree,
    writing,
)
from versatileffn.workspace.lock import LOCK, locked
from versatileffn.workspace.manifest import files_of, read_record, strangers

_NEW, _READY, _OLD = "new", "ready", "old"
_AT_FDCWD = -100
_SWAP = 2  # RENAME_EXCHANGE on Linux, RENAME_SWAP on macOS


def check_free(
    path: Path,
    record: str,
    overwrite: bool = False,
    error_class: type[VersatileFFNError] = ConfigError,
    source: str | Path | None = None,
) -> Path:
    """Refuse to write where something else is; the folder to write, with links followed.

    Args:
        path: the folder that is wanted.
        record: name of the file that lists a folder's files; only such a folder is ever replaced,
            and only if it holds nothing else.
        overwrite: replace an older folder of this kind.
        error_class: what is raised.
        source: what is read meanwhile, where it is a path; it must not be replaced.

    Raises:
        error_class: the place is taken, or can't be written.
    """
    with writing(path, error_class):
        try:
            target = path.expanduser().resolve()
            str(target).encode()  # what writes weights and tokenizers can't open other names
        except UnicodeEncodeError:
            raise error_class(f"{str(path)!r} isn't UTF-8: choose another output") from None
        except RuntimeError as error:  # a link that leads to itself
            raise error_class(
                f"{path} can't be followed ({error}): choose another output"
            ) from None
        if Path.cwd().is_relative_to(target):
            raise error_class(
                f"{path} holds the current folder and can't be replaced: name a new folder"
            )
        if target.is_dir():
            occupied = any(target.iterdir())
        elif os.path.lexists(path) or os.path.lexists(target):
            raise error_class(f"{path} is in the way and not a folder: choose another output")
        else:
            occupied = False
        if not occupied:
            return target
        if not (target / record).is_file():
            raise error_class(
                f"{path} already exists and wasn't written by this command (it has no {record}), "
                "so it is never replaced: choose another output"
            )
        if not overwrite:
            tidy(target, published=False)  # a run may have been killed after publishing
            raise error_class(f"{path} already exists: choose another output, or pass --overwrite")
        _check_all_ours(path, target, record, error_class)
        if source and os.path.exists(source) and Path(source).resolve().is_relative_to(target):
            raise error_class(f"{path} holds the source {source}: choose another output")
    return target


def _check_all_ours(
    path: Path,
    target: Path,
    record: str,
    error_class: type[VersatileFFNError],
) -> None:
    files = files_of(read_record(target / record))
    if files is None:
        raise error_class(
            f"{path} can't be replaced: its {record} doesn't list its files, so yours can't be "
            "told from ours; delete it yourself, or choose another output"
        )
    foreign = [name for name in strangers(target, files) if name != record]
    if foreign:
        more = f" and {len(foreign) - 1} more" if len(foreign) > 1 else ""
        raise error_class(
            f"{path} holds {foreign[0]}{more}, which this command didn't write, so it isn't "
            "replaced: move that away, or choose another output"
        )


def claim(
    folder: Path,
    record: str,
    what: str,
    error_class: type[VersatileFFNError] = ConfigError,
) -> None:
    """Make a folder that is worked in for long, or refuse one that holds something else.

    Args:
        folder: made if need be.
        record: the file that says that a folder is one of these; the caller writes it.
        what: it should hold, for the error.
        error_class: what is raised.

    Raises:
        error_class: the folder holds something else, or can't be made.
    """
    with writing(folder, error_class):
        if os.path.lexists(folder) and not folder.is_dir():
            raise error_class(f"{folder} is a file, or a link to nothing: choose another folder")
        make_folder(folder)
        names = {child.name for child in folder.iterdir()} - {LOCK, beside(Path(record)).name}
    if names and record not in names:
        raise error_class(
            f"{folder} is not empty and holds no {what}: choose another folder; nothing was changed"
        )


@contextmanager
def held(folder: Path, record: str, what: str) -> Iterator[None]:
    """A folder to work in for long, see `claim`, that no other process works in meanwhile.

    Raises:
        ConfigError: it holds something else, another process is at it, or it can't be made.
    """
    claim(folder, record, what)
    with locked(folder, str(folder)):
        yield


@contextmanager
def new_folder(
    path: Path,
    record: str,
    overwrite: bool = False,
    *,
    key: str | None = None,
    error_class: type[VersatileFFNError] = ConfigError,
) -> Iterator[Path]:
    """A folder to fill; it appears at `path`, whole and on disk, when the block ends without error.

    An older folder stays in place until then, and the two change places at once. It is filled in a
    hidden folder beside `path`, which is held while the block runs; what killed runs left there is
    removed.

    Args:
        path, record, overwrite, error_class: see `check_free`. The block writes `record`,
            whose `files` are `digests` of the folder.
        key: names this very piece of work, a few characters. With it, what an interruption, a full
            disk or a refusal to publish leaves behind is kept, and the same key gets it again.

    Raises:
        error_class: the place is taken, can't be written, or another process is at it.
    """

    def check() -> Path:
        return check_free(path, record, overwrite, error_class)

    target = check()
    work = _work_folder(target, key)
    with writing(path, error_class):
        work.parent.mkdir(parents=True, exist_ok=True)
        tidy(target, published=False)
        check()  # again: an older folder may be back in place
        with suppress(FileExistsError):
            work.mkdir()
        if work.is_symlink() or not work.is_dir():
            raise error_class(f"{work} is in the way: remove it, or choose another output")
    with locked(work, str(path), error_class):
        new = work / _NEW
        keep = False
        try:
            with writing(path, error_class):
                new.mkdir(exist_ok=True)
            try:
                yield new
            except BaseException as error:
                bad_input = isinstance(error, VersatileFFNError)
                keep = isinstance(error, ResourceError) or not bad_input
                raise
            keep = True  # if it may not be published, it isn't thrown away
            with writing(path, error_class):
                publish(new, check())
                keep = False
        finally:
            if key is None or not keep:
                _discard(work)
    tidy(target, published=True)


def publish(new: Path, target: Path) -> None:
    """Put a filled folder where it belongs; an older one is then beside where the new one was.

    At every moment one of the two is in place. Where the file system can't exchange two names, the
    older one is moved away first, and the next `new_folder` brings it back if this was as far as
    it went.
    """
    sync_tree(new)
    if not target.exists() or not any(target.iterdir()):
        rename(new, target)
        return
    ready = new.with_name(_READY)  # so that nobody takes the older one for work to continue
    rename(new, ready)
    try:
        _exchange(ready, target)
        sync(target.parent)
        sync(ready.parent)
    except OSError as error:
        if error.errno not in (errno.ENOSYS, errno.EINVAL, errno.ENOTSUP, errno.EXDEV):
            raise
        rename(target, new.with_name(_OLD))
        rename(ready, target)


def _exchange(first: Path, second: Path) -> None:
    """Let two paths change places, atomically.

    Raises:
        OSError: ENOSYS and the like where system or file system can't.
    """
    library = ctypes.CDLL(None, use_errno=True)
    one, two = os.fsencode(first), os.fsencode(second)
    if sys.platform == "linux" and hasattr(library, "renameat2"):
        failed = library.renameat2(_AT_FDCWD, one, _AT_FDCWD, two, ctypes.c_uint(_SWAP))
    elif hasattr(library, "renamex_np"):
        failed = library.renamex_np(one, two, ctypes.c_uint(_SWAP))
    else:
        raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS))
    if failed:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number), str(second))


def _work_folder(target: Path, key: str | None) -> Path:
    return target.with_name(f".{target.name}{PARTIAL}{f'-{key}' if key else ''}")


def tidy(target: Path, published: bool) -> None:
    """See to what killed runs left beside an output, and no living process holds.

    An older output that was moved away comes back; work that nobody will continue is removed.

    Args:
        target: the output.
        published: whether it has just been made, so that no other work for it is wanted.
    """
    nameless = _work_folder(target, None)
    for work in target.parent.glob(f"{glob.escape(nameless.name)}*"):
        if work != nameless and not work.name.startswith(f"{nameless.name}-"):
            continue
        with suppress(VersatileFFNError), locked(work, str(work)):
            if (work / _OLD).is_dir() and not os.path.lexists(target):
                rename(work / _OLD, target)
            remove(work / name for name in (_OLD, _READY))
            if published or work == nameless or not (work / _NEW).is_dir():
                _discard(work)


def _discard(work: Path) -> None:
    """Remove a held work folder, its lock last; what stays all the same is said.

    It may be there because of an error that is on its way, which this one must not hide.
    """
    try:
        remove(child for child in work.iterdir() if child.name != LOCK)
        (work / LOCK).unlink()
        work.rmdir()
    except OSError as error:
        if error.errno != errno.ENOTEMPTY:  # someone waits for it already
            warnings.warn(
                f"{work} can't be removed ({error.strerror}): the next run does it, or you do",
                stacklevel=2,
            )
