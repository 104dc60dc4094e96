"""Readers of text files and data sets that stop at bad input, with its file and line."""

import importlib.util
import io
import os
from abc import ABC, abstractmethod
from collections.abc import Iterator
from itertools import islice
from typing import IO, Any

import orjson
import pyarrow.parquet as pq

from versatileffn.data.decoding import (
    CHUNK_BYTES,
    COMPRESSIONS,
    MAX_DOCUMENT_BYTES,
    naming,
    open_input,
    read_whole,
    too_long,
    without_bom,
)
from versatileffn.data.default_corpus import read_topics
from versatileffn.errors import DataError
from versatileffn.memory import raise_out_of_memory


class FileReader(ABC):
    """Base of the readers of files.

    Args:
        root: the folder that the files lie in.
        files: paths relative to it, in their order.
        field: name of the field with the text (records only).
    """

    def __init__(self, root: str, files: list[str], field: str = "text") -> None:
        self.root, self.files, self.field = root, files, field

    def run(self, rank: int = 0, world_size: int = 1) -> Iterator[str]:
        """Yield the documents of files rank, rank + world_size, …."""
        for name in self.files[rank::world_size]:
            yield from self.read_file(name)

    def read_file(self, name: str) -> Iterator[str]:
        """Yield one file's documents, without empty ones.

        Raises:
            DataError: the file is damaged or is not what its name says.
        """
        path = os.path.join(self.root, name)
        with naming(path), open(path, "rb") as raw:
            yield from filter(None, self.texts(open_input(raw, path), path))

    @abstractmethod
    def texts(self, file: IO[bytes], path: str) -> Iterator[str]:
        """Yield the text of each document of an open file."""


class TextReader(FileReader):
    """Read plain text: a file is a document, or several cut at a separator.

    Args:
        separator: text between two documents of a file; None keeps the file whole.
    """

    def __init__(self, root: str, files: list[str], separator: str | None = None) -> None:
        super().__init__(root, files)
        self.separator = separator

    def texts(self, file: IO[bytes], path: str) -> Iterator[str]:
        """Yield the file's text, whole or in parts."""
        for start, content in self._parts(file, path):
            if b"\0" in content:
                raise DataError(f"{path}: a binary file (it has NUL bytes), not text; leave it out")
            try:
                text = content.decode("utf-8")
            except UnicodeDecodeError as error:
                raise DataError(
                    f"{path}: not UTF-8 text (byte {start + error.start}); convert it or leave it "
                    "out"
                ) from error
            if not text.isspace():
                yield text

    def _parts(self, file: IO[bytes], path: str) -> Iterator[tuple[int, bytearray]]:
        """The parts between separators, in UTF-8, each with the byte at which it starts."""
        separator = (self.separator or "").encode("utf-8", "surrogateescape")
        content, start, searched = bytearray(), 0, 0
        while chunk := file.read(CHUNK_BYTES):
            content += chunk if start or content else without_bom(chunk, path)
            while separator and (found := content.find(separator, searched)) >= 0:
                yield start, content[:found]
                del content[: found + len(separator)]
                start, searched = start + found + len(separator), 0
            searched = max(0, len(content) - len(separator))
            if len(content) > MAX_DOCUMENT_BYTES:
                raise too_long(path)
        yield start, content


class JsonlReader(FileReader):
    """Read JSON lines: a line is a document, its text in one field."""

    def texts(self, file: IO[bytes], path: str) -> Iterator[str]:
        """Yield each line's text."""
        lines = iter(lambda: file.readline(MAX_DOCUMENT_BYTES + 1), b"")
        for number, line in enumerate(lines, start=1):
            where = f"{path}, line {number}"
            if len(line) > MAX_DOCUMENT_BYTES:
                raise too_long(where)
            if number == 1:
                line = without_bom(line, path)
            if line.isspace() or not line:
                continue
            try:
                record = orjson.loads(line)
            except orjson.JSONDecodeError as error:
                raise_out_of_memory(error)
                raise DataError(
                    f"{where}: not JSON ({error}); each line must be one JSON object"
                ) from error
            if not isinstance(record, dict):
                raise DataError(
                    f"{where}: a JSON {type(record).__name__}; each line must be one JSON object"
                )
            yield field_text(record, self.field, where)


_ROWS = 32  # decoded at once: a text that a file holds once may stand in every row


class ParquetReader(FileReader):
    """Read Parquet: a row is a document, its text in one column; only that column is read."""

    def texts(self, file: IO[bytes], path: str) -> Iterator[str]:
        """Yield each row's text."""
        compressed = path.lower().endswith(COMPRESSIONS)  # such a stream can't seek, Parquet has to
        with pq.ParquetFile(io.BytesIO(read_whole(file, path)) if compressed else file) as table:
            if self.field not in table.schema_arrow.names:
                raise missing_field(self.field, table.schema_arrow.names, path)
            number = 0
            for batch in table.iter_batches(batch_size=_ROWS, columns=[self.field]):
                for value in batch.column(0):
                    record = {self.field: value.as_py()}
                    yield field_text(record, self.field, f"{path}, row {number}")
                    number += 1


class TopicsReader(FileReader):
    """Read Python's language reference: a topic is a document."""

    def texts(self, file: IO[bytes], path: str) -> Iterator[str]:
        """Yield each topic's text."""
        yield from read_topics().values()


class HubReader:
    """Read a data set of the Hugging Face Hub: a row is a document.

    Args:
        dataset: its id.
        config: which of its configurations; None if it has one.
        split: which of its splits.
        field: the column with the text.
        streaming: read over the network row by row instead of downloading everything first.

    Raises:
        DataError: what reads the Hub isn't installed.
    """

    def __init__(
        self, dataset: str, config: str | None, split: str, field: str, streaming: bool
    ) -> None:
        if importlib.util.find_spec("datasets") is None:
            raise DataError(
                f"{dataset}: reading the Hugging Face Hub needs its extra; "
                "pip install -e '.[hub]', or name a file or folder that exists"
            )
        self.dataset, self.config, self.split = dataset, config, split
        self.field, self.streaming = field, streaming

    def run(self, rank: int = 0, world_size: int = 1) -> Iterator[str]:
        """Yield this task's share of the rows: a stretch of them, so that none is decoded twice.

        Raises:
            DataError: the data set can't be had, or lacks the split, configuration or column.
        """
        from datasets import load_dataset

        try:
            rows = load_dataset(
                self.dataset, self.config, split=self.split, streaming=self.streaming
            )
            first, step = 0, 1
            if self.streaming:  # its length isn't known
                first, step = rank, world_size
                rows = islice(rows, first, None, step)
            else:
                first, end = (len(rows) * part // world_size for part in (rank, rank + 1))
                rows = rows.select(range(first, end))
            for number, row in enumerate(rows):
                yield field_text(row, self.field, f"{self.dataset}, row {first + number * step}")
        except (OSError, ValueError, RuntimeError) as error:
            raise_out_of_memory(error)
            reason = " ".join(str(error).split())[:300]
            raise DataError(
                f"{self.dataset}: neither a path here nor a data set that the Hugging Face Hub "
                f"serves ({reason}); check the name, --hub-config, --hub-split and the network"
            ) from error


def field_text(record: dict[str, Any], field: str, where: str) -> str:
    """The text of a record; empty for null or mere white space, which readers then pass over.

    Raises:
        DataError: the field is missing or isn't text.
    """
    if field not in record:
        raise missing_field(field, list(record), where)
    text = record[field]
    if text is None:
        return ""
    if not isinstance(text, str):
        raise DataError(
            f"{where}: field {field!r} holds {type(text).__name__}, not text; "
            "name the right one with --text-field"
        )
    return "" if text.isspace() else text


def missing_field(field: str, present: list[str], where: str) -> DataError:
    """The error for a record without the text field."""
    return DataError(f"{where}: no field {field!r}, only {present}; name it with --text-field")
