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

from versatileffn.errors import DataError, ResourceError
from versatileffn.workspace.durable import size_text

COMPRESSIONS = (".gz", ".zst", ".xz")
MAX_DOCUMENT_BYTES = 2**30
"""A document is held in memory, several times over; few bytes can expand to any number."""
CHUNK_BYTES = 2**20


@contextmanager
def naming(path: str) -> Iterator[None]:
    """Turn what a damaged file makes a decoder raise into an error that names the file.

    Raises:
        ResourceError: the system can't give what is in it.
        DataError: what is in it is damaged.
    """
    try:
        yield
    except (OSError, EOFError, zlib.error, lzma.LZMAError, pa.ArrowException) as error:
        if isinstance(error, OSError) and error.errno is not None:
            raise ResourceError(
                f"{path}: can't be read ({error.strerror}); repair that and run the same command "
                "again"
            ) from error
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


def too_long(where: str) -> DataError:
    """The error for a document that would take too much memory."""
    return DataError(
        f"{where}: a document of more than {size_text(MAX_DOCUMENT_BYTES)}, the most that is read "
        "as one; cut it into several (text files: --document-separator)"
    )


def read_whole(file: IO[bytes], path: str) -> bytes:
    """All that is in a file, if memory is likely to hold it.

    Raises:
        DataError: it is larger than any document may be.
    """
    content = bytearray()
    while chunk := file.read(CHUNK_BYTES):
        content += chunk
        if len(content) > MAX_DOCUMENT_BYTES:
            raise too_long(path)
    return bytes(content)


def without_bom(start: bytes, path: str) -> bytes:
    """The first bytes of a text file without UTF-8's byte order mark.

    Raises:
        DataError: they begin with the mark of UTF-16 or UTF-32.
    """
    if start.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE, codecs.BOM_UTF32_BE)):
        raise DataError(f"{path}: UTF-16 or UTF-32 text, not UTF-8; convert it to UTF-8")
    return start.removeprefix(codecs.BOM_UTF8)
