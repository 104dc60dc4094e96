"""The tokens of one task and split, on disk as they come; and the record of a finished task."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np

from versatileffn.workspace.durable import (
    beside,
    open_own,
    remove,
    rename,
    sync,
    write_bytes,
    write_json,
)
from versatileffn.workspace.manifest import CHECKSUM, FILES, checksum, damage, read_record


class Shard:
    """Writes one shard: `name` with the tokens, `name`.index with where each document ends.

    The files appear when they are whole and on disk; a shard without documents leaves none.

    Args:
        folder: the token folder.
        name: of the shard, relative to it.
        token_bytes: width of a stored token, 2 or 4.
    """

    def __init__(self, folder: Path, name: str, token_bytes: int) -> None:
        self.folder, self.name = folder, name
        self.dtype = np.dtype(f"<u{token_bytes}")
        self.documents = self.tokens = self.bytes = 0
        self._ends: list[int] = []
        self._digest = hashlib.sha256()
        self._path = folder / name
        self._path.parent.mkdir(parents=True, exist_ok=True)
        remove([beside(self._path)])
        self._file = open_own(beside(self._path), 0)

    def __enter__(self) -> "Shard":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._file.close()

    def add(self, ids: Sequence[int]) -> None:
        """Add tokens to the document at hand."""
        content = np.asarray(ids, self.dtype).tobytes()
        self._file.write(content)
        self._digest.update(content)
        self.tokens += len(ids)

    def end_document(self, size: int) -> None:
        """End the document at hand, of `size` UTF-8 bytes."""
        self.documents += 1
        self.bytes += size
        self._ends.append(self.tokens)

    def finish(self) -> dict[str, str]:
        """Put the files in their places; their names and digests."""
        self._file.flush()
        self._file.close()
        partial = beside(self._path)
        if not self.documents:
            remove([partial])
            return {}
        sync(partial)
        rename(partial, self._path)
        index = np.asarray(self._ends, "<u8").tobytes()
        write_bytes(self._path.with_name(f"{self._path.name}.index"), index)
        digest = hashlib.sha256(index).hexdigest()
        return {self.name: self._digest.hexdigest(), f"{self.name}.index": digest}


@dataclass(frozen=True)
class TaskRecords:
    """What each finished task has made. A task without a record has to be done (again).

    Args:
        folder: where the records lie.
        root: the folder that the files they name lie in.
    """

    folder: Path
    root: Path

    def save(self, rank: int, files: dict[str, str], counts: dict[str, int]) -> None:
        """Call a task finished: its files, with their digests, are on disk."""
        self.folder.mkdir(parents=True, exist_ok=True)
        record = {FILES: files, "counts": counts}
        write_json(self._path(rank), record | {CHECKSUM: checksum(record)})

    def finished(self, rank: int) -> bool:
        """Whether a task has a record, and its files are still what it wrote; if not, it has no
        record from then on."""
        record = self._whole(rank)
        if record is not None and not damage(self.root, record[FILES]):
            return True
        if self.exists(rank):
            remove([self._path(rank)])
        return False

    def exists(self, rank: int) -> bool:
        """Whether a task has a record, without a look at its files."""
        return self._path(rank).exists()

    def files(self, tasks: int) -> dict[str, str]:
        """All files that the tasks made, with their digests."""
        return {
            name: digest
            for rank in range(tasks)
            for name, digest in self._read(rank)[FILES].items()
        }

    def totals(self, tasks: int) -> dict[str, int]:
        """Each count, summed over the tasks that are finished."""
        totals: dict[str, int] = {}
        for rank in range(tasks):
            for name, count in self._read(rank)["counts"].items():
                totals[name] = totals.get(name, 0) + count
        return totals

    def _read(self, rank: int) -> dict[str, Any]:
        return self._whole(rank) or {FILES: {}, "counts": {}}

    def _whole(self, rank: int) -> dict[str, Any] | None:
        """A task's record, if there is one and it is what was written."""
        record = read_record(self._path(rank)) or {}
        return record if record.pop(CHECKSUM, None) == checksum(record) else None

    def _path(self, rank: int) -> Path:
        return self.folder / f"{rank:05d}.json"
