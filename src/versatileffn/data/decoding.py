"""From a file's bytes to text: compression, byte order marks, damage."""

import codecs
import gzip
import io
import lzma
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from typing import IO, cast

import pyarrow as pa

from versatileffn.errors import DataError

COMPRESSIONS = (".gz", ".zst", ".xz")


@contextmanager
def naming(path: str) -> Iterator[None]:
    """Turn what a damaged file makes a decoder raise into an error that names the file."""
    try:
        yield
    except (OSError, EOFError, zlib.error, lzma.LZMAError, pa.ArrowException) as error:
        reason = " ".join(str(error).split())
        raise DataError(f"{path}: can't be read ({reason}); is it complete and intact?") from error


def open_input(raw: IO[bytes], path: str) -> IO[bytes]:
    """Decompress `raw` by the last suffix of `path`.

    For .zst it takes pyarrow's stream: unlike the common one it reads all frames of a file and
    complains when the last is cut off.
    """
    path = path.lower()
    if path.endswith(".gz"):
        return cast(IO[bytes], gzip.GzipFile(fileobj=raw))
    if path.endswith(".xz"):
        return lzma.LZMAFile(raw)
    if path.endswith(".zst"):
        return io.BufferedReader(pa.input_stream(raw, compression="zstd"))
    return raw


def without_bom(start: bytes, path: str) -> bytes:
    """The first bytes of a text file without UTF-8's byte order mark.

    Raises:
        DataError: they begin with the mark of UTF-16 or UTF-32.
    """
    if start.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE, codecs.BOM_UTF32_BE)):
        raise DataError(f"{path}: UTF-16 or UTF-32 text, not UTF-8; convert it to UTF-8")
    return start.removeprefix(codecs.BOM_UTF8)
