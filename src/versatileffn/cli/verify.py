"""`versatileffn verify`: is everything still what was written?"""

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated

import typer

RECORDS = {
    "analysis.json": "analysis",
    "meta.json": "tokens",
    "receipt.json": "converted model",
    "export.json": "exported model",
    "contents.json": "training checkpoint",
    "run.json": "finished training",
    "stage.json": "stage",
}
"""Files that list the digests of those beside and below them, and what they belong to."""


def verify_command(
    folder: Annotated[
        list[Path],
        typer.Argument(help="Folders that versatileffn wrote; folders in them are found."),
    ],
) -> None:
    """Compare every file of these folders with the SHA-256 that was written down for it.

    One line for each folder; exit code 1 if a file is missing or was changed.
    """
    from versatileffn.errors import ConfigError

    damaged = 0
    for place in folder:
        if not place.is_dir():
            raise ConfigError(f"{place} is no folder: name one that versatileffn wrote")
        found, vouched = 0, set[Path]()
        for record in _records(place):
            found += 1
            verdict, good = _check(record, vouched)
            damaged += not good
            typer.echo(f"{'ok' if good else 'DAMAGED':<9}{record.parent}  {verdict}")
        if not found:
            raise ConfigError(
                f"{place} holds nothing that could be checked (no {', no '.join(RECORDS)}): name a "
                "folder that versatileffn finished"
            )
    if damaged:
        raise typer.Exit(1)


def _records(place: Path) -> Iterator[Path]:
    """Every record below a folder, from the outside to the inside; links aren't followed."""
    from versatileffn.workspace.durable import PARTIAL, stop

    for parent, folders, files in os.walk(place, onerror=stop):
        folders[:] = sorted(f for f in folders if not (f.startswith(".") and PARTIAL in f))
        for name in RECORDS:
            if name in files:
                yield Path(parent, name)


def _check(record: Path, vouched: set[Path]) -> tuple[str, bool]:
    """What to say about one folder, and whether it is as it was written.

    Args:
        record: the file that lists digests.
        vouched: files that an outer record has listed; this one's are added.
    """
    from versatileffn.workspace.manifest import damage, files_of, read_record

    kind, content = RECORDS[record.name], read_record(record)
    if content is None:
        return f"{kind}: {record.name} can't be read", False
    files = files_of(content)
    if files is None:
        if record in vouched:
            return f"{kind}: {record.name} is listed by an outer record", True
        return f"{kind}: {record.name} lists no digests; an earlier version wrote it", False
    vouched |= {record.parent / name for name in files}
    wrong = damage(record.parent, files)
    if wrong:
        more = f" (and {len(wrong) - 1} more)" if len(wrong) > 1 else ""
        return f"{kind}: {wrong[0]}{more}", False
    return f"{kind}, {len(files)} files", True
