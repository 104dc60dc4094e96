"""A verb's own JSON file: written over one of its kind or where nothing is, nowhere else."""

import os
import shlex
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Annotated, Any

import typer

from versatileffn.errors import ConfigError
from versatileffn.provenance import versions
from versatileffn.workspace.durable import check_file, write_json, writing
from versatileffn.workspace.manifest import read_record

JsonOption = Annotated[
    Path | None, typer.Option("--json", help="Write the result here, too; an older one goes.")
]
OverwriteOption = Annotated[
    bool, typer.Option("--overwrite", help="Let the JSON file replace one of another kind.")
]
LIBRARIES = ("torch", "transformers")
LARGEST = 2**26
"""Bytes; a larger file isn't read to see whether it is a record."""


def command_line() -> str:
    """What the user typed."""
    return shlex.join(["versatileffn", *sys.argv[1:]])


class RecordFile:
    """Where one verb's record goes.

    Args:
        path: the file; None writes nothing.
        verb: which verb; it stands in the record, and so tells the next run whose file it is.
        inputs: what the verb reads, where it is a file or a folder; never replaced.
        overwrite: replace a file of any other kind.

    Raises:
        ConfigError: something is there that may not be replaced, or nothing can be written.
    """

    def __init__(
        self,
        path: Path | None,
        verb: str,
        inputs: Iterable[str | Path | None],
        overwrite: bool = False,
    ) -> None:
        self.path, self.verb, self.overwrite = path, verb, overwrite
        self.inputs = [Path(given) for given in inputs if given is not None]
        if path is not None:
            self._check(path)

    def write(self, record: dict[str, Any]) -> None:
        """Write the record, with verb, command and versions before it."""
        if self.path is None:
            return
        self._check(self.path)  # again: time has passed
        head = {"verb": self.verb, "command": command_line(), "versions": versions(*LIBRARIES)}
        with writing(self.path):
            write_json(self.path, head | record)

    def _check(self, path: Path) -> None:
        """Make the file's folder, and raise ConfigError unless the file may be written."""
        check_file(path)
        if not os.path.lexists(path):
            return
        if path.is_symlink() or not path.is_file():
            raise ConfigError(f"{path} is no plain file: choose another place")
        content = read_record(path) if path.stat().st_size <= LARGEST else None
        ours = content is not None and content.get("verb") == self.verb
        for given in self.inputs:
            if _belongs_to(path, given, ours):
                raise ConfigError(f"{path} belongs to the input {given}: choose another place")
        if not (ours or self.overwrite):
            raise ConfigError(
                f"{path} already exists and `versatileffn {self.verb}` didn't write it: "
                "choose another place, or pass --overwrite"
            )


def _belongs_to(path: Path, given: Path, ours: bool) -> bool:
    if not given.exists():
        return False  # a hub id, a task
    if given.is_dir():
        return not ours and path.resolve().is_relative_to(given.resolve())
    return path.samefile(given)
