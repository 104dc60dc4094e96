"""A folder that appears whole or not at all."""

import fcntl
import os
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from versatileffn.data.meta import META_FILE, TokenMeta
from versatileffn.errors import DataError, VersatileFFNError

_OURS = re.compile(r"meta\.json|(train|val)/\d+\.ds(\.index)?|tokenizer/(.+/)?[^/]+\.(json|jinja)")
_LOCK = ".lock"


def resolve_output(output: str | Path) -> Path:
    """The absolute path of `output`, links followed: the folder itself is replaced, not a link.

    Raises:
        DataError: the links lead nowhere, or the name isn't UTF-8, as the tokenizer's must be.
    """
    try:
        path = Path(output).resolve()
        str(path).encode("utf-8")
    except (OSError, RuntimeError) as error:
        raise DataError(f"{output}: a link that can't be followed; choose another --out") from error
    except UnicodeEncodeError as error:
        raise DataError(f"{output}: the name isn't valid UTF-8; choose another --out") from error
    return path


def check_output(output: Path, overwrite: bool, source: str | Path | None = None) -> None:
    """Raise DataError unless `output` may be written: it is free, or a token folder to replace.

    Args:
        output: a path from `resolve_output`.
        overwrite: whether an existing token folder may be replaced.
        source: the corpus, which must not be replaced with it.
    """
    if not os.path.lexists(output):
        return
    with _reporting(output):
        if not output.is_dir():
            raise DataError(f"{output}: a file is in the way; choose another --out")
        if Path.cwd().is_relative_to(output):
            raise DataError(
                f"{output}: the current folder lies here and can't be replaced; name a new folder, "
                "such as --out tokens"
            )
        if not any(output.iterdir()):
            return
        _check_token_folder(output)
    if not overwrite:
        raise DataError(f"{output}: not empty; choose another --out, or replace it by --overwrite")
    if source and os.path.exists(source) and Path(source).resolve().is_relative_to(output):
        raise DataError(f"{output}: holds the corpus {source}; choose another --out")


@contextmanager
def replacing(output: Path, key: str, overwrite: bool) -> Iterator[Path]:
    """Give a folder beside `output` to fill; rename it into place at the end.

    After bad input the folder is removed. After an interruption or a full disk it stays, and the
    same `key` gets it again, so that the work continues.

    Args:
        output: the folder to make, a path from `resolve_output`.
        key: what names this very piece of work, a few characters.
        overwrite: replace an existing token folder.

    Raises:
        DataError: `output` may not or can't be written, or someone else is at it.
    """
    check_output(output, overwrite)
    partial = output.parent / f"{output.name}.partial-{key}"
    with _reporting(output):
        partial.mkdir(parents=True, exist_ok=True)
        lock = (partial / _LOCK).open("w")
    with lock:  # the lock ends with the process, however that ends, and children don't inherit it
        try:
            fcntl.lockf(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise DataError(f"{partial}: another run is writing here; wait for it") from error
        with _reporting(output):
            try:
                yield partial
                (partial / _LOCK).unlink()
                _publish(partial, output, overwrite)
            except VersatileFFNError:
                shutil.rmtree(partial, ignore_errors=True)
                raise


def _publish(partial: Path, output: Path, overwrite: bool) -> None:
    check_output(output, overwrite)  # again: time has passed
    old = output.parent / f"{output.name}.old-{partial.name.rpartition('-')[2]}"
    if output.exists():
        shutil.rmtree(old, ignore_errors=True)  # of a run that was stopped at this very place
        output.rename(old)
    partial.rename(output)
    shutil.rmtree(old, ignore_errors=True)


def _check_token_folder(folder: Path) -> None:
    """Raise DataError unless `tokenize` made the folder and nothing was added to it."""
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder).as_posix()
        is_folder = path.is_dir() and not path.is_symlink()
        if not is_folder and not _OURS.fullmatch(name):
            raise DataError(
                f"{folder}: not empty and not a token folder (it has {name}), so it won't be "
                "replaced; choose another --out"
            )
    try:
        TokenMeta.load(folder)
    except DataError as error:
        raise DataError(
            f"{folder}: not empty and not a token folder (its {META_FILE} is missing or invalid), "
            "so it won't be replaced; choose another --out"
        ) from error


@contextmanager
def _reporting(output: Path) -> Iterator[None]:
    """Turn the system's refusal to write into an error that names the folder."""
    try:
        yield
    except OSError as error:
        raise DataError(
            f"{output}: can't be written ({error.strerror or error}); repair that and run the "
            "same command again, or choose another --out"
        ) from error
