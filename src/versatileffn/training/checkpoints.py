"""Folders that are either whole or not there: written beside, renamed into place."""

import hashlib
import json
import os
import re
import shutil
from collections.abc import Iterable
from pathlib import Path

from versatileffn.errors import CheckpointError
from versatileffn.files import PARTIAL, write_json

_NAME = re.compile(r"checkpoint-(\d+)")
_CONTENTS = "contents.json"


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


def _digests(folder: Path) -> dict[str, str]:
    """SHA-256 of each file below `folder`, the list of them excepted."""
    digests = {}
    for path in sorted(p for p in folder.rglob("*") if p.is_file() and p.name != _CONTENTS):
        with path.open("rb") as file:
            digests[str(path.relative_to(folder))] = hashlib.file_digest(file, "sha256").hexdigest()
    return digests


def seal(checkpoint: Path) -> None:
    """List a written checkpoint's files with their digests, for `check_whole`."""
    write_json(checkpoint / _CONTENTS, _digests(checkpoint))


def check_whole(checkpoint: Path) -> None:
    """See that a checkpoint is as it was written: a resumed run must not differ.

    Raises:
        CheckpointError: a file is missing, or isn't what was written.
    """
    try:
        written = json.loads((checkpoint / _CONTENTS).read_bytes())
        found = _digests(checkpoint)
        damaged = [name for name, digest in written.items() if found.get(name) != digest]
    except (OSError, ValueError, AttributeError, RecursionError):
        damaged = [_CONTENTS]
    if damaged:
        raise CheckpointError(
            f"{checkpoint} is damaged ({damaged[0]} is missing or isn't what was written): delete "
            "it, and the same command resumes from the checkpoint before it"
        )


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


def leftovers(folder: Path) -> list[Path]:
    """What an interruption left half-written, or half-deleted, among the checkpoints."""
    return [folder / PARTIAL, *folder.glob(f"{PARTIAL}-checkpoint-*")]


def remove(paths: Iterable[Path]) -> None:
    """Delete files and folders of ours, where they exist."""
    for path in paths:
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)
