"""Outputs are written beside their place and renamed into it: half-written ones never count."""

import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from versatileffn.errors import ConfigError

PARTIAL = ".partial"


def beside(path: Path) -> Path:
    """Where `path` is written before it is renamed into place."""
    return path.with_name(f".{path.name}{PARTIAL}")


def check_free(path: Path, overwrite: bool = False) -> None:
    """Refuse to replace what is already there.

    Raises:
        ConfigError: `path` exists, isn't an empty folder, and `overwrite` is off.
    """
    occupied = (path.is_dir() and any(path.iterdir())) or path.is_file()
    if occupied and not overwrite:
        raise ConfigError(f"{path} already exists: choose another output, or pass --overwrite")


@contextmanager
def new_folder(path: Path, overwrite: bool = False) -> Iterator[Path]:
    """A folder to fill; it appears at `path` only when the block ends without an error.

    An older folder there stays in place until then; what an interrupted run left beside it is
    removed first.

    Raises:
        ConfigError: `path` is occupied and `overwrite` is off.
    """
    check_free(path, overwrite)
    partial = beside(path)
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    try:
        yield partial
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise
    if path.exists():
        doomed = path.with_name(f".{path.name}.replaced")
        shutil.rmtree(doomed, ignore_errors=True)
        os.replace(path, doomed)
        os.replace(partial, path)
        shutil.rmtree(doomed)
    else:
        os.replace(partial, path)


def write_json(path: Path, content: Any) -> None:
    """Write strict JSON (no NaN), atomically.

    Raises:
        ValueError: a number is not finite.
    """
    partial = beside(path)
    text = json.dumps(content, indent=2, allow_nan=False, ensure_ascii=False)
    partial.write_text(text + "\n", encoding="utf-8")
    os.replace(partial, path)
