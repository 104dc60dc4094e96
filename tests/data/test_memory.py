"""Memory stays a small multiple of the longest document, and bounded where a document is a bomb."""

import gzip
import json
import lzma
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import zstandard

from versatileffn.data import decoding, readers
from versatileffn.data.corpus import find_corpus
from versatileffn.errors import DataError

MEASURE = """
import resource, sys
from versatileffn.data.tokenize import tokenize_corpus
def peak(): return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
small, large, out = sys.argv[1:]
tokenize_corpus(small, out + "1", vocab_size=400, val_fraction=0)
before = peak()
tokenize_corpus(large, out + "2", vocab_size=400, val_fraction=0)
print(peak() - before)
"""
BYTES_PER_BYTE = 10
WINDOWS = 90 * 2**20
"""Bytes that windows of text take while they are encoded, however long the text."""
COMPRESS: dict[str, Callable[[bytes], bytes]] = {
    ".gz": gzip.compress,
    ".xz": lzma.compress,
    ".zst": zstandard.compress,
}


@pytest.mark.parametrize("kind", ["txt", "jsonl"])
def test_one_big_document(kind: str, texts: list[str], tmp_path: Path) -> None:
    text = "\n".join(texts)
    text *= 3_000_000 // len(text)
    for name, content in (("small", texts[0]), ("large", text)):
        record = content if kind == "txt" else json.dumps({"text": content})
        (tmp_path / f"{name}.{kind}").write_text(record, encoding="utf-8")
    files = [tmp_path / f"small.{kind}", tmp_path / f"large.{kind}", tmp_path / "out"]
    result = subprocess.run(
        [sys.executable, "-c", MEASURE, *map(str, files)],
        env=os.environ | {"PYTHONPATH": str(Path(__file__).parents[2] / "src")},
        capture_output=True,
        text=True,
    )
    assert result.returncode == 0, result.stderr[-2000:]
    assert int(result.stdout) < BYTES_PER_BYTE * len(text) + WINDOWS


@pytest.fixture
def small_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (decoding, readers):
        monkeypatch.setattr(module, "MAX_DOCUMENT_BYTES", 1000)
        monkeypatch.setattr(module, "CHUNK_BYTES", 100)


@pytest.mark.usefixtures("small_limit")
@pytest.mark.parametrize("suffix", COMPRESS)
@pytest.mark.parametrize("kind", ["txt", "jsonl", "parquet"])
def test_a_bomb_is_refused_at_the_limit(kind: str, suffix: str, tmp_path: Path) -> None:
    (tmp_path / f"a.{kind}{suffix}").write_bytes(COMPRESS[suffix](b"a" * 10_000_000))
    with pytest.raises(DataError, match=r"a document of more than .*cut it") as caught:
        list(find_corpus(tmp_path).pieces()[0])
    assert "\n" not in str(caught.value)


@pytest.mark.usefixtures("small_limit")
def test_a_long_file_of_short_documents_is_none(tmp_path: Path) -> None:
    parts = [f"{number} " * (number % 40 + 1) for number in range(500)]
    (tmp_path / "a.txt.gz").write_bytes(gzip.compress("<é>".join(parts).encode()))
    found = find_corpus(tmp_path, document_separator="<é>").pieces()[0]
    assert list(found) == parts


def test_a_text_that_a_table_repeats(tmp_path: Path) -> None:
    """Parquet holds a text once for all rows; only a few rows are decoded at a time."""
    pq.write_table(pa.table({"text": ["x" * 2**18] * 2000}), tmp_path / "a.parquet")
    assert (tmp_path / "a.parquet").stat().st_size < 2**20
    pool = pa.default_memory_pool()
    before, peak = pool.bytes_allocated(), 0
    for count, _ in enumerate(find_corpus(tmp_path).pieces()[0]):
        peak = max(peak, pool.bytes_allocated() - before)
        if count > 200:
            break
    assert peak < 60 * 2**20
