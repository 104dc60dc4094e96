"""Whether a token folder still holds what was tokenized: its size alone doesn't tell."""

from collections.abc import Callable
from pathlib import Path

from versatileffn.data.meta import TokenMeta
from versatileffn.errors import DataError
from versatileffn.workspace.durable import size_text
from versatileffn.workspace.manifest import damage

LARGE = 4 * 2**30
"""Bytes from which on it is said that reading them takes a while."""


def verify_tokens(folder: Path, meta: TokenMeta, say: Callable[[str], None] = print) -> None:
    """Compare all files of a token folder with the digests in its meta.json.

    Args:
        folder: as `versatileffn tokenize` writes it.
        meta: of it.
        say: is told where it takes long.

    Raises:
        DataError: a file is missing, or isn't what was written.
    """
    total = sum((folder / name).stat().st_size for name in meta.files if (folder / name).is_file())
    if total >= LARGE:
        say(f"verifying {size_text(total)} of tokens in {folder}")
    wrong = damage(folder, meta.files)
    if wrong:
        raise DataError(
            f"{folder}: {wrong[0]}: restore the folder, or write it again with `versatileffn "
            "tokenize`"
        )
