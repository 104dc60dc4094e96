"""Files that touch a canary where somebody runs what is in them."""

import hashlib
import io
import json
import pickle
from collections.abc import Callable
from pathlib import Path

import torch

RECORDS = ("contents.json", "meta.json", "receipt.json", "export.json", "run.json")
"""Files that list the digests of those beside and below them."""


class Payload:
    """Unpickled, it makes a file."""

    def __init__(self, canary: Path) -> None:
        self.canary = str(canary)

    def __reduce__(self) -> tuple[Callable[..., object], tuple[str]]:
        return Path.touch, (Path(self.canary),)  # type: ignore[return-value]


def plain(canary: Path) -> bytes:
    """As Python pickles."""
    return pickle.dumps(Payload(canary))


def by_torch(canary: Path) -> bytes:
    """As torch.save does: a zip archive with a pickle in it."""
    file = io.BytesIO()
    torch.save({"state": Payload(canary), "step": 1}, file)
    return file.getvalue()


def put(path: Path, content: bytes, root: Path) -> None:
    """Put content in a file's place, and its digest into every record that lists the file."""
    path.write_bytes(content)
    folder = path
    while folder != root:
        folder = folder.parent
        for name in RECORDS:
            record, listed = folder / name, path.relative_to(folder).as_posix()
            if record == path or not record.is_file():
                continue
            try:
                held = json.loads(record.read_text())
            except ValueError:
                continue
            if isinstance(held, dict) and listed in held.get("files", {}):
                held["files"][listed] = hashlib.sha256(content).hexdigest()
                record.write_text(json.dumps(held))
