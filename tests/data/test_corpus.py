"""Every kind of file and compression gives the same documents; bad ones stop with their name."""

import codecs
import gzip
import json
import lzma
import os
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import zstandard

from versatileffn.data import corpus as corpus_module
from versatileffn.data.corpus import Corpus, find_corpus
from versatileffn.data.default_corpus import (
    default_corpus_name,
    read_topics,
    source_files,
    standard_library,
)
from versatileffn.errors import ConfigError, DataError, ResourceError

COMPRESS: dict[str, Callable[[bytes], bytes]] = {
    "": lambda content: content,
    ".gz": gzip.compress,
    ".xz": lzma.compress,
    ".zst": zstandard.ZstdCompressor(write_checksum=True).compress,  # as the zstd program does
}


def read(corpus: Corpus) -> list[str]:
    return [text for piece in corpus.pieces() for text in piece]


def write_parquet(path: Path, texts: list[str | None], column: str = "text") -> bytes:
    pq.write_table(pa.table({"n": range(len(texts)), column: texts}), path)
    return path.read_bytes()


@pytest.mark.parametrize("suffix", COMPRESS)
@pytest.mark.parametrize("kind", ["txt", "jsonl", "json", "parquet"])
def test_every_format_reads_alike(kind: str, suffix: str, texts: list[str], tmp_path: Path) -> None:
    if kind == "txt":
        texts = ["\n".join(texts)]
        content = texts[0].encode()
    elif kind == "parquet":
        content = write_parquet(tmp_path / "plain", [None, *texts])
    else:
        content = b"\n\n".join(json.dumps({"text": text}).encode() for text in texts)
    path = tmp_path / f"some.{kind}{suffix}"
    path.write_bytes(COMPRESS[suffix](content))
    assert read(find_corpus(path)) == texts


def test_folder_reads_all_kinds_in_order_and_counts_the_rest(tmp_path: Path) -> None:
    (tmp_path / "b").mkdir()
    (tmp_path / ".git").mkdir()
    (tmp_path / "b" / "two.md").write_text("two")
    (tmp_path / "a.txt").write_text("one")
    (tmp_path / "z.jsonl.gz").write_bytes(gzip.compress(b'{"text": "three"}'))
    (tmp_path / "settings.json").write_text("{}")
    (tmp_path / "picture.png").write_bytes(b"\x89PNG\0")
    (tmp_path / ".git" / "HEAD.txt").write_text("hidden")
    found = find_corpus(tmp_path)
    assert read(found) == ["one", "two", "three"]
    assert found.skipped == {".json": 1, ".png": 1}


def test_separator_cuts_text_files(tmp_path: Path) -> None:
    path = tmp_path / "stories.txt"
    path.write_text("one\n<|endoftext|>\ntwo\n<|endoftext|>\n")
    assert read(find_corpus(path, document_separator="<|endoftext|>\n")) == ["one\n", "two\n"]


def test_all_frames_of_a_zst_are_read(tmp_path: Path) -> None:
    path = tmp_path / "frames.txt.zst"
    path.write_bytes(zstandard.compress(b"first ") + zstandard.compress(b"second"))
    assert read(find_corpus(path)) == ["first second"]


@pytest.mark.parametrize("suffix", [".gz", ".xz", ".zst"])
def test_cut_off_compressed_file(suffix: str, tmp_path: Path) -> None:
    path = tmp_path / f"cut.txt{suffix}"
    content = "".join(f"{number * number} " for number in range(20000)).encode()
    path.write_bytes(COMPRESS[suffix](content)[:-2000])
    with pytest.raises(DataError, match=r"cut\.txt.*intact"):
        read(find_corpus(path))


@pytest.mark.parametrize("suffix", [".gz", ".xz", ".zst"])
def test_garbled_compressed_file(suffix: str, tmp_path: Path) -> None:
    content = bytearray(COMPRESS[suffix]("".join(map(str, range(9999))).encode()))
    content[40:2000] = bytes(1960)
    (tmp_path / f"a.txt{suffix}").write_bytes(content)
    with pytest.raises(DataError, match=r"a\.txt.*intact"):
        read(find_corpus(tmp_path / f"a.txt{suffix}"))


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("a.txt", codecs.BOM_UTF8 + b"text"),
        ("a.jsonl", codecs.BOM_UTF8 + b'{"text": "text"}'),
        ("A.TXT", b"text"),
        ("A.JSONL.GZ", gzip.compress(b'{"text": "text"}', mtime=0)),
        ("a.jsonl", b'{"text": "text"}\n{"text": " \\n"}\n{"text": null}'),
        (os.fsdecode(b"\xff.txt"), b"text"),
    ],
)
def test_text_is_found(name: str, content: bytes, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(content)
    assert read(find_corpus(tmp_path)) == read(find_corpus(tmp_path / name)) == ["text"]


def test_blank_rows_are_no_documents(tmp_path: Path) -> None:
    write_parquet(tmp_path / "A.PARQUET", [" ", "text", None, "\n"])
    assert read(find_corpus(tmp_path)) == ["text"]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.txt", b"text\0binary", r"a\.txt: a binary file"),
        ("a.txt", "text".encode("utf-16"), r"a\.txt: UTF-16 .* convert it to UTF-8"),
        ("a.jsonl", "{}".encode("utf-16"), r"a\.jsonl: UTF-16 .* convert it to UTF-8"),
        ("a.txt", b"caf\xe9", r"a\.txt: not UTF-8 text \(byte 3\)"),
        ("a.txt.gz", b"no gzip", r"a\.txt\.gz: can't be read"),
        ("a.jsonl", b'{"text": "a"}\n{"text": \n', r"a\.jsonl, line 2: not JSON"),
        ("a.jsonl", b'{"text": "\xff"}\n', r"a\.jsonl, line 1: not JSON"),
        ("a.jsonl", b"[1]\n", r"a\.jsonl, line 1: a JSON list"),
        ("a.jsonl", b'{"body": "a"}\n', r"line 1: no field 'text', only \['body'\].*--text-field"),
        ("a.jsonl", b'{"text": 3}\n', r"line 1: field 'text' holds int"),
        ("a.jsonl", b'{"text": "a", "n": ' + b"9" * 5000 + b"x}", "line 1: not JSON"),
        ("a.jsonl", b"9" * 5000, "line 1: (not JSON|a JSON float)"),
        ("a.parquet", b"no parquet", r"a\.parquet: can't be read"),
    ],
)
def test_bad_file_is_named(name: str, content: bytes, message: str, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(DataError, match=message) as caught:
        read(find_corpus(tmp_path / name))
    assert "\n" not in str(caught.value)


def test_parquet_without_the_column(tmp_path: Path) -> None:
    write_parquet(tmp_path / "a.parquet", ["x"], column="body")
    with pytest.raises(DataError, match=r"a\.parquet: no field 'text', only \['n', 'body'\]"):
        read(find_corpus(tmp_path / "a.parquet"))
    assert read(find_corpus(tmp_path / "a.parquet", text_field="body")) == ["x"]


def test_missing_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "here").mkdir()
    for missing in (
        tmp_path / "none",
        "corpus/data.jsonl",
        "nothing",
        "here/none",
        "x" * 300,
        "x" * 300 + "/y",
    ):
        with pytest.raises(DataError, match="no such file or folder"):
            find_corpus(missing)


def test_source_that_is_no_file(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.txt")
    with pytest.raises(DataError, match="neither a file nor a folder"):
        find_corpus(tmp_path / "pipe.txt")
    with pytest.raises(DataError, match="SOURCE is empty text"):
        find_corpus("")


@pytest.mark.parametrize(
    ("name", "option"),
    [
        ("a.txt", {"text_field": "text"}),
        ("a.txt", {"hub_split": "train"}),
        ("a.jsonl", {"hub_config": "small"}),
        ("a.jsonl", {"document_separator": "#"}),
        (None, {"text_field": "body"}),
    ],
)
def test_option_without_effect(name: str | None, option: dict[str, str], tmp_path: Path) -> None:
    if name is not None:
        (tmp_path / name).write_text("x")
    with pytest.raises(ConfigError, match=f"{next(iter(option))}=.* has no effect"):
        find_corpus(name and tmp_path / name, **option)


def test_unknown_extension_and_empty_folder(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="empty corpus, found no files"):
        find_corpus(tmp_path)
    (tmp_path / "a.docx").write_bytes(b"x")
    with pytest.raises(DataError, match=r"unknown kind of file \(\.docx\).*\.parquet"):
        find_corpus(tmp_path / "a.docx")
    with pytest.raises(DataError, match=r"empty corpus, found \.docx"):
        find_corpus(tmp_path)


def test_default_corpus_is_pythons_own_text() -> None:
    names = source_files(standard_library())
    assert names == sorted(set(names))
    assert {"argparse.py", "asyncio/base_events.py", "json/decoder.py"} <= set(names)
    assert not [n for n in names if {"test", "tests", "site-packages"} & set(n.split("/"))]
    found = find_corpus(None)
    documents = read(found)
    assert found.source == default_corpus_name()
    assert len(documents) == len(names) + len(read_topics())
    assert sum(map(len, documents)) > 8_000_000
    assert "lambda" in read_topics()["lambda"]


def test_python_without_sources(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(corpus_module, "standard_library", lambda: tmp_path)
    with pytest.raises(DataError, match="no Python sources here; name a SOURCE"):
        find_corpus(None)


@pytest.mark.parametrize("suffix", [".gz", ".xz", ".zst"])
def test_no_flipped_bit_and_no_cut_is_accepted(suffix: str, tmp_path: Path) -> None:
    """Each either changes nothing (a time stamp, say) or is told."""
    text = "".join(f"{number * number} " for number in range(60))
    content = COMPRESS[suffix](text.encode())
    path = tmp_path / f"a.txt{suffix}"
    damaged = [content[:length] for length in range(1, len(content))]
    for at in range(len(content)):
        damaged.append(content[:at] + bytes([content[at] ^ 1 << at % 8]) + content[at + 1 :])
    told = []
    for bad in damaged:
        path.write_bytes(bad)
        try:
            assert read(find_corpus(path)) == [text]
        except DataError as error:
            told.append(str(error))
    assert all("a.txt" in line and "\n" not in line for line in told)
    assert len(told) >= len(damaged) - 20  # of gzip's header, ten bytes mean nothing


def test_what_is_passed_over_is_told(tmp_path: Path) -> None:
    (tmp_path / "b.txt.zst").write_bytes(COMPRESS[".zst"](b"text"))
    (tmp_path / "c.png").touch()
    (passed_over,) = find_corpus(tmp_path).notices()
    assert "passed over: 1 .png" in passed_over
    assert not find_corpus(tmp_path / "b.txt.zst").notices()


def test_links_that_lead_nowhere(tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "a.txt").write_text("text")
    (tmp_path / "loop.txt").symlink_to("loop.txt")
    (tmp_path / "folder" / "up").symlink_to(tmp_path)
    assert read(find_corpus(tmp_path)) == ["text"]
    with pytest.raises(DataError, match="no such file or folder"):
        find_corpus(tmp_path / "loop.txt")


def test_a_file_that_can_not_be_read_is_the_machines(tmp_path: Path) -> None:
    """So that `tokenize` keeps what it has done: /proc/self/mem gives an I/O error."""
    (tmp_path / "a.txt").symlink_to("/proc/self/mem")
    if not (tmp_path / "a.txt").is_file():
        pytest.skip("no /proc here")
    with pytest.raises(ResourceError, match=r"a\.txt: can't be read \(.*run the same command"):
        read(find_corpus(tmp_path))
