"""What an analysis hands to whoever writes it down."""

import csv
import io
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Outcome:
    """One analysis of one model on some text.

    Args:
        title: of the table.
        table: cells by heading, for the terminal.
        record: all that was found, for JSON.
        files: pictures, tables and pages by their names, in the order in which to name them.
        notes: what a reader has to know, a line each.
    """

    title: str
    table: Mapping[str, Sequence[str]]
    record: Mapping[str, Any]
    files: Mapping[str, bytes]
    notes: Sequence[str] = ()


def csv_bytes(heading: Sequence[str], rows: Iterable[Sequence[Any]]) -> bytes:
    """A table as a file, UTF-8, with Unix line ends."""
    content = io.StringIO()
    writer = csv.writer(content, lineterminator="\n")
    writer.writerow(heading)
    writer.writerows(rows)
    return content.getvalue().encode()
