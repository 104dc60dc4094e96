"""The file of finished items: an interrupted evaluation goes on where it stopped."""

import json
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from math import isfinite
from pathlib import Path
from typing import Any, BinaryIO

from versatileffn.errors import ConfigError
from versatileffn.evaluation.tasks.metrics import predictions
from versatileffn.evaluation.tasks.requests import Item
from versatileffn.workspace.durable import open_own, write_bytes, write_json, writing
from versatileffn.workspace.folder import claim, held
from versatileffn.workspace.manifest import CHECKSUM, checksum, read_record

SETTINGS_FILE = "settings.json"
RECORDS_FILE = "records.jsonl"
FORMAT = 2
"""Of the records; those of another format aren't continued."""
SECONDS_AT_RISK = 2.0
"""What losing power may cost: records are on disk at least this often."""


@dataclass(frozen=True)
class Record:
    """What a model answered to one item.

    Args:
        task, index, label, document: see `Item`.
        requests: digest of what was asked, `Item.digest`.
        log_likelihoods: of each choice, in nats.
        characters: of each choice's continuation, leading space included.
        cut: tokens that had to be left out on the left, for each choice.
        predictions: the choice under each metric.
        scoring: the mode that the model was asked in, see `modes.py`.
    """

    task: str
    index: int
    label: int
    document: str
    requests: str
    log_likelihoods: list[float]
    characters: list[int]
    cut: list[int]
    predictions: dict[str, int]
    scoring: str

    @classmethod
    def of(cls, item: Item, log_likelihoods: list[float], scoring: str) -> "Record":
        """The record of an item that was scored."""
        characters = [request.characters for request in item.requests]
        return cls(
            task=item.task,
            index=item.index,
            label=item.label,
            document=item.document,
            requests=item.digest(),
            log_likelihoods=log_likelihoods,
            characters=characters,
            cut=[request.cut for request in item.requests],
            predictions=predictions(log_likelihoods, characters),
            scoring=scoring,
        )

    def check(self) -> None:
        """Raise ValueError or TypeError where a field isn't what `of` makes it."""
        made = predictions(self.log_likelihoods, self.characters)
        numbers = [self.index, self.label, *self.cut]
        sound = all(type(n) is int for n in numbers) and len(self.cut) == len(self.characters)
        if made != self.predictions or not sound or not all(map(isfinite, self.log_likelihoods)):
            raise ValueError("the record contradicts itself")

    def correct(self, metric: str) -> float:
        """1 if the prediction under a metric is right, else 0."""
        return float(self.predictions[metric] == self.label)


class RecordStore:
    """Records of one model under one setting, in a folder; opened for one process at a time."""

    def __init__(self, folder: Path, file: BinaryIO, known: list[Record]) -> None:
        self.folder = folder
        self._file = file
        self._known = {(r.task, r.index, r.requests): r for r in known}
        self._synced = time.monotonic()

    @classmethod
    @contextmanager
    def open(
        cls, folder: Path, settings: dict[str, Any], tell: Callable[[str], None]
    ) -> Iterator["RecordStore"]:
        """Open a folder's records, or begin them.

        Args:
            folder: created if need be.
            settings: everything the numbers depend on; JSON-able.
            tell: is told of damage, in one line; damaged records are left out.

        Raises:
            ConfigError: the folder holds something else or other settings' records, is in use, or
                can't be written.
            ResourceError: the disk is full.
        """
        with held(folder, SETTINGS_FILE, "evaluation"):
            with writing(folder):
                _check_settings(folder, settings)
                known = _read(folder / RECORDS_FILE, tell)
                file = open_own(folder / RECORDS_FILE, os.O_APPEND)
            try:
                yield cls(folder, file, known)
            finally:
                with suppress(OSError):  # a full disk has been told of
                    file.close()

    def find(self, item: Item) -> Record | None:
        """The record of exactly this item, if there is one."""
        return self._known.get((item.task, item.index, item.digest()))

    def add(self, record: Record) -> None:
        """Append a finished record; it survives the end of this process, however it ends."""
        fields = asdict(record)
        line = json.dumps(
            fields | {CHECKSUM: checksum(fields)}, ensure_ascii=False, allow_nan=False
        )
        with writing(self.folder):
            self._file.write(f"{line}\n".encode())
            self._file.flush()
        if time.monotonic() - self._synced > SECONDS_AT_RISK:
            self.sync()

    def sync(self) -> None:
        """Have all records on disk."""
        with writing(self.folder):
            os.fsync(self._file.fileno())
        self._synced = time.monotonic()


def _check_settings(folder: Path, settings: dict[str, Any]) -> None:
    """Write the settings of new records; refuse to continue those of others."""
    path, settings = folder / SETTINGS_FILE, {"format": FORMAT, **settings}
    if not path.is_file():
        write_json(path, settings)
        return
    known = read_record(path)
    if known is None:
        raise ConfigError(f"{path} can't be read: choose another --out")
    names = sorted(set(known) | set(settings))
    differing = [name for name in names if known.get(name) != settings.get(name)]
    if differing:
        name = differing[0]
        raise ConfigError(
            f"{folder} holds an evaluation with {name}={known.get(name)!r}, this one has "
            f"{name}={settings.get(name)!r}: choose another --out"
        )
    if known != settings:  # in keys without a value
        write_json(path, settings)


def _read(path: Path, tell: Callable[[str], None]) -> list[Record]:
    """The whole records of a file; what an interruption damaged is cut out of it, and told."""
    if path.is_symlink():
        raise ConfigError(f"{path} is a link: put the file itself there, or choose another --out")
    if not path.is_file():
        return []
    lines = path.read_bytes().splitlines(keepends=True)
    found = [_parse(line) for line in lines]
    whole = [line for line, record in zip(lines, found, strict=True) if record is not None]
    if len(whole) < len(lines):
        write_bytes(path, b"".join(whole))
        tell(
            f"{path}: {len(lines) - len(whole)} of {len(lines)} records were damaged and are left "
            "out; their items are scored again"
        )
    return [record for record in found if record is not None]


def _parse(line: bytes) -> Record | None:
    """The record of a line; None where it is damaged, by its missing end, too."""
    try:
        fields = json.loads(line)
        if fields.pop(CHECKSUM, None) not in (None, checksum(fields)):  # earlier versions had none
            return None
        record = Record(**fields)
        record.check()
    except (ValueError, TypeError, AttributeError, RecursionError):
        return None
    return record if line.endswith(b"\n") else None


def check_own(folder: Path) -> None:
    """Make sure that records can be kept in a folder; make it, if need be.

    Raises:
        ConfigError: it holds something else, or can't be written.
    """
    claim(folder, SETTINGS_FILE, "evaluation")
