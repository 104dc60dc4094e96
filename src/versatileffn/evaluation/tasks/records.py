"""The file of finished items: an interrupted evaluation goes on where it stopped."""

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, TextIO

from versatileffn.errors import ConfigError, DataError
from versatileffn.evaluation.tasks.metrics import predictions
from versatileffn.evaluation.tasks.requests import Item
from versatileffn.files import LOCK, beside, locked, write_json, writing

SETTINGS_FILE = "settings.json"
RECORDS_FILE = "records.jsonl"


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

    @classmethod
    def of(cls, item: Item, log_likelihoods: list[float]) -> "Record":
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
        )

    def check(self) -> None:
        """Raise ValueError or TypeError where a field isn't what `of` makes it."""
        made = predictions(self.log_likelihoods, self.characters)
        if made != self.predictions or [type(n) for n in self.cut] != [int] * len(self.characters):
            raise ValueError("the record contradicts itself")

    def correct(self, metric: str) -> float:
        """1 if the prediction under a metric is right, else 0."""
        return float(self.predictions[metric] == self.label)


class RecordStore:
    """Records of one model under one setting, in a folder; opened for one process at a time."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.known: dict[tuple[str, int, str], Record] = {}
        self._file: TextIO | None = None

    @classmethod
    @contextmanager
    def open(cls, folder: Path, settings: dict[str, Any]) -> Iterator["RecordStore"]:
        """Open a folder's records, or begin them.

        Args:
            folder: created if need be.
            settings: everything the numbers depend on; JSON-able.

        Raises:
            ConfigError: the folder holds something else or other settings' records, is in use, or
                can't be written.
            DataError: a record in it can't be read.
        """
        store = cls(folder)
        check_own(folder)
        with locked(folder, str(folder)):
            with writing(folder):
                store._check_settings(settings)
                store._read()
                file = (folder / RECORDS_FILE).open("a", encoding="utf-8")
            with file:
                store._file = file
                yield store

    def find(self, item: Item) -> Record | None:
        """The record of exactly this item, if there is one."""
        return self.known.get((item.task, item.index, item.digest()))

    def add(self, records: list[Record]) -> None:
        """Append finished records; they survive the end of this process, however it ends."""
        assert self._file is not None
        lines = [json.dumps(asdict(r), ensure_ascii=False, allow_nan=False) for r in records]
        with writing(self.folder):
            self._file.write("".join(line + "\n" for line in lines))
            self._file.flush()
        for record in records:
            self.known[record.task, record.index, record.requests] = record

    def _check_settings(self, settings: dict[str, Any]) -> None:
        path = self.folder / SETTINGS_FILE
        if not path.is_file():
            write_json(path, settings)
            return
        try:
            known = json.loads(path.read_text(encoding="utf-8"))
            if not isinstance(known, dict):
                raise ValueError("no settings")
        except ValueError:
            raise ConfigError(f"{path} can't be read: choose another --out") from None
        names = sorted(set(known) | set(settings))
        differing = [name for name in names if known.get(name) != settings.get(name)]
        if differing:
            name = differing[0]
            raise ConfigError(
                f"{self.folder} holds an evaluation with {name}={known.get(name)!r}, this one has "
                f"{name}={settings.get(name)!r}: choose another --out"
            )

    def _read(self) -> None:
        """Read what is there; cut off a last line that an interruption left unfinished."""
        path = self.folder / RECORDS_FILE
        if not path.is_file():
            return
        content = path.read_bytes()
        whole = content.rfind(b"\n") + 1
        if whole < len(content):
            os.truncate(path, whole)
        for number, line in enumerate(content[:whole].splitlines(), start=1):
            try:
                record = Record(**json.loads(line))
                record.check()
            except (ValueError, TypeError):
                raise DataError(
                    f"{path}, line {number} is damaged: remove that line, and the item is scored "
                    "again"
                ) from None
            self.known[record.task, record.index, record.requests] = record


def check_own(folder: Path) -> None:
    """Make sure that records can be kept in a folder; make it, if need be.

    Raises:
        ConfigError: it holds something else, or can't be written.
    """
    with writing(folder):
        folder.mkdir(parents=True, exist_ok=True)
        partial = beside(folder / SETTINGS_FILE).name  # left by a process that was killed
        names = {child.name for child in folder.iterdir()} - {LOCK, partial}
    if names and SETTINGS_FILE not in names:
        raise ConfigError(f"{folder} is not empty and holds no evaluation: choose another --out")
