"""Folders that are either whole or not there: written beside, renamed into place."""

import os
import re
import shutil
from pathlib import Path

from versatileffn.files import PARTIAL

_NAME = re.compile(r"checkpoint-(\d+)")


def step_of(checkpoint: Path) -> int:
    """Optimizer steps that were finished when `checkpoint` was written."""
    match = _NAME.fullmatch(checkpoint.name)
    if match is None:
        raise ValueError(f"{checkpoint} is not named checkpoint-<step>")
    return int(match.group(1))


def complete_checkpoints(folder: Path) -> list[Path]:
    """The whole checkpoints in `folder`, oldest first.

    Half-written ones never carry their final name, see `commit`.
    """
    if not folder.is_dir():
        return []
    return sorted((p for p in folder.iterdir() if _NAME.fullmatch(p.name)), key=step_of)


def commit(partial: Path, final: Path) -> None:
    """Flush a written folder to disk and give it its final name, which nothing may have yet."""
    for path in sorted(p for p in partial.rglob("*") if p.is_file()):
        with path.open("rb") as file:
            os.fsync(file.fileno())
    os.replace(partial, final)


def prune(folder: Path, keep: int) -> None:
    """Delete all but the newest `keep` checkpoints, each renamed away before it is taken apart."""
    for checkpoint in complete_checkpoints(folder)[:-keep]:
        doomed = checkpoint.with_name(f"{PARTIAL}-{checkpoint.name}")
        os.replace(checkpoint, doomed)
        shutil.rmtree(doomed)


def clear_partial(folder: Path) -> None:
    """Delete what an interruption left half-written, or half-deleted, in `folder`."""
    if folder.is_dir():
        for path in [*folder.glob(f"{PARTIAL}*"), *folder.glob(f".*{PARTIAL}")]:
            if path.is_dir():
                shutil.rmtree(path)
            else:
                path.unlink()
