"""A GGUF file's table of contents, read strictly before Transformers reads it."""

from pathlib import Path
from typing import Any


def check_gguf(path: Path) -> None:
    """Read the header of a file, however damaged it is.

    The package's own reader takes a length in the header at its word: it would go on behind the
    file's end, for hours and until memory is full.

    Raises:
        ImportError: the package `gguf` isn't installed.
        Exception: whatever is wrong with the file.
    """
    from gguf import GGUFReader

    class Strict(GGUFReader):
        def _get(self, offset: int, dtype: Any, count: int = 1, *rest: Any, **options: Any) -> Any:
            found = super()._get(offset, dtype, count, *rest, **options)
            if len(found) < int(count):
                raise ValueError("it ends before what its header promises")
            return found

    Strict(path)
