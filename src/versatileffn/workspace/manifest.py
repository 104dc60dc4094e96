"""Which files of a folder are ours, and whether they are still what was written.

Every folder of ours has a record, a JSON file whose `files` maps names to SHA-256 digests.
"""

import hashlib
import json
import os
import zlib
from collections.abc import Collection, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path, PurePosixPath
from typing import Any

from versatileffn.workspace.durable import stop
from versatileffn.workspace.lock import LOCK

FILES = "files"
CHECKSUM = "crc32"
"""Key of a record's own checksum, where a digit that flips would contradict nothing else."""


def read_record(path: Path) -> dict[str, Any] | None:
    """The object in a JSON file of ours; None where it is missing or damaged."""
    try:
        content = json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError):
        return None
    return content if isinstance(content, dict) else None


def checksum(record: Mapping[str, Any]) -> int:
    """CRC-32 of what a record says, whatever the order of its keys."""
    return zlib.crc32(json.dumps(record, sort_keys=True).encode())


def files_of(record: Mapping[str, Any] | None) -> dict[str, str] | None:
    """The digests that a record lists; None where it lists none, or not as we do."""
    files = None if record is None else record.get(FILES)
    if not isinstance(files, dict) or not files:
        return None
    for name, digest in files.items():
        path = PurePosixPath(name)
        if not isinstance(digest, str) or path.is_absolute() or ".." in path.parts:
            return None
    return files


def names_in(folder: Path) -> list[str]:
    """Every file and link below a folder, sorted, as relative POSIX paths; no lock."""
    found = []
    for parent, folders, files in os.walk(folder, onerror=stop):
        links = [name for name in folders if os.path.islink(os.path.join(parent, name))]
        for name in (*files, *links):
            if name != LOCK:
                found.append(Path(parent, name).relative_to(folder).as_posix())
    return sorted(found)


def sha256(path: Path) -> str:
    """SHA-256 of a file's bytes, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def digests(folder: Path, without: Collection[str] = ()) -> dict[str, str]:
    """What a record lists under `files`: the SHA-256 of each file below its folder.

    Args:
        folder: to look through.
        without: names that aren't listed, the record's own for one.
    """
    names = [name for name in names_in(folder) if name not in without]
    with ThreadPoolExecutor() as pool:
        return dict(zip(names, pool.map(lambda name: sha256(folder / name), names), strict=True))


def damage(folder: Path, files: Mapping[str, str]) -> list[str]:
    """Files that are missing or aren't what was written, as `name: reason`."""

    def look(name: str) -> str | None:
        try:
            return None if sha256(folder / name) == files[name] else "isn't what was written"
        except FileNotFoundError:
            return "is missing"
        except OSError as error:
            return f"can't be read ({error.strerror})"

    with ThreadPoolExecutor() as pool:
        found = zip(files, pool.map(look, files), strict=True)
        return [f"{name} {reason}" for name, reason in found if reason]


def strangers(folder: Path, own: Collection[str]) -> list[str]:
    """Files and links below a folder that aren't among our own."""
    return [name for name in names_in(folder) if name not in own]
