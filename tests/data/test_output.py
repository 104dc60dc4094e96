"""A token folder appears whole or not at all, and nothing of the user's is lost to it."""

import os
from pathlib import Path

import pytest

from versatileffn.data.tokenize import tokenize_corpus
from versatileffn.errors import DataError


def names(folder: Path) -> set[str]:
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}


def make(corpus: Path, out: str | Path, overwrite: bool = False) -> None:
    tokenize_corpus(corpus, out, vocab_size=300, overwrite=overwrite)


def test_overwrite_spares_what_is_no_token_folder(corpus_folder: Path, tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("years of work")
    with pytest.raises(DataError, match=r"it has no meta\.json.*never replaced"):
        tokenize_corpus(corpus_folder, tmp_path, overwrite=True)
    with pytest.raises(DataError, match="can't be written"):
        tokenize_corpus(corpus_folder, tmp_path / "thesis.tex" / "out")
    with pytest.raises(DataError, match="in the way and not a folder"):
        tokenize_corpus(corpus_folder, tmp_path / "thesis.tex", overwrite=True)
    assert (tmp_path / "thesis.tex").read_text() == "years of work"


def test_overwrite_spares_a_corpus_laid_out_in_splits(corpus_folder: Path, tmp_path: Path) -> None:
    for split in ("train", "val"):
        (tmp_path / "c" / split).mkdir(parents=True)
        (tmp_path / "c" / split / "a.txt").write_text("years of work")
    before = names(tmp_path)
    for source in (corpus_folder, tmp_path / "c", tmp_path / "c" / "train"):
        with pytest.raises(DataError, match=r"it has no meta\.json"):
            make(source, tmp_path / "c", overwrite=True)
    assert names(tmp_path) == before


@pytest.mark.parametrize("name", ["train/notes.txt", "tokenizer/notes.txt", "val/more/00000.ds"])
def test_overwrite_spares_what_was_added(name: str, corpus_folder: Path, tmp_path: Path) -> None:
    make(corpus_folder, tmp_path / "out")
    (tmp_path / "out" / name).parent.mkdir(exist_ok=True)
    (tmp_path / "out" / name).write_text("mine")
    with pytest.raises(DataError, match=f"holds {name}, which this command didn't write"):
        make(corpus_folder, tmp_path / "out", overwrite=True)
    (tmp_path / "out" / name).unlink()
    make(corpus_folder, tmp_path / "out", overwrite=True)


def test_overwrite_needs_a_meta_file_that_lists_what_is_ours(
    corpus_folder: Path, tmp_path: Path
) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "meta.json").write_text('{"mine": true}')
    with pytest.raises(DataError, match=r"its meta\.json doesn't list its files"):
        make(corpus_folder, tmp_path / "out", overwrite=True)
    assert names(tmp_path) == {"out/meta.json"}


def test_corpus_inside_the_output(corpus_folder: Path, tmp_path: Path) -> None:
    make(corpus_folder, tmp_path / "out")
    before = names(tmp_path)
    with pytest.raises(DataError, match="holds the source"):
        make(tmp_path / "out" / "tokenizer" / "tokenizer.json", tmp_path / "out", overwrite=True)
    assert names(tmp_path) == before


def test_output_inside_the_corpus_is_not_read(tmp_path: Path) -> None:
    for name in ("a.txt", "b.txt"):
        (tmp_path / name).write_text(name)
    make(tmp_path, tmp_path / "out")
    first = (tmp_path / "out" / "meta.json").read_bytes()
    make(tmp_path, tmp_path / "out", overwrite=True)
    assert (tmp_path / "out" / "meta.json").read_bytes() == first


def test_output_through_a_link(corpus_folder: Path, tmp_path: Path) -> None:
    (tmp_path / "disk").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "disk")
    (tmp_path / "dangling").symlink_to(tmp_path / "new")
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    make(corpus_folder, tmp_path / "link")
    make(corpus_folder, tmp_path / "link", overwrite=True)
    make(corpus_folder, tmp_path / "dangling")
    with pytest.raises(DataError, match=r"can't be followed|in the way"):
        make(corpus_folder, tmp_path / "loop")
    assert (tmp_path / "link").is_symlink()
    assert (tmp_path / "dangling" / "meta.json").is_file()
    assert {p.name for p in tmp_path.iterdir()} == {"disk", "link", "dangling", "new", "loop"}


def test_output_that_can_not_be(corpus_folder: Path, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    for out, message in (
        (tmp_path / "pipe", "in the way"),
        (tmp_path / ("x" * 300), "can't be written"),
        (tmp_path / ("x" * 250), "can't be written"),  # no room for what stands beside it
        (Path("/proc/out"), "can't be written"),
    ):
        with pytest.raises(DataError, match=message) as caught:
            make(corpus_folder, out)
        assert "\n" not in str(caught.value)
    assert [path.name for path in tmp_path.iterdir()] == ["pipe"]


def test_current_folder(
    corpus_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for out in (".", "..", "", tmp_path):
        with pytest.raises(DataError, match="holds the current folder"):
            make(corpus_folder, out)
    assert not list(tmp_path.iterdir())
