"""What was written is told from what was changed, and ours from others'."""

import errno
import hashlib
import os

import pytest

from versatileffn.workspace.durable import sync_tree
from versatileffn.workspace.lock import LOCK
from versatileffn.workspace.manifest import damage, digests, files_of, read_record, strangers


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "below").mkdir()
    (tmp_path / "a").write_bytes(b"one")
    (tmp_path / "below" / "b").write_bytes(b"two")
    (tmp_path / LOCK).touch()
    return tmp_path


def test_every_file_but_the_lock_is_listed(folder):
    assert digests(folder, without=["a"]) == {"below/b": hashlib.sha256(b"two").hexdigest()}
    assert list(digests(folder)) == ["a", "below/b"]


def test_every_change_is_damage(folder):
    files = digests(folder)
    assert damage(folder, files) == []
    (folder / "a").write_bytes(b"eno")  # as long as before
    (folder / "below" / "b").unlink()
    assert damage(folder, files) == ["a isn't what was written", "below/b is missing"]
    (folder / "below" / "b").mkdir()
    assert "can't be read" in damage(folder, files)[1]


def test_a_folder_that_can_not_be_listed_is_not_an_empty_one(folder, monkeypatch):
    listing = os.scandir

    def broken(path):
        if str(path).endswith("below"):
            raise OSError(errno.EIO, "Input/output error", str(path))
        return listing(path)

    monkeypatch.setattr(os, "scandir", broken)
    for look in (digests, sync_tree):
        with pytest.raises(OSError, match="Input/output error"):
            look(folder)


def test_strangers_are_files_and_links_that_nobody_listed(folder):
    files = digests(folder)
    assert strangers(folder, files) == []
    (folder / "below" / "link").symlink_to(folder)
    (folder / "thesis").touch()
    assert strangers(folder, files) == ["below/link", "thesis"]


@pytest.mark.parametrize(
    "record",
    [None, {}, {"files": {}}, {"files": ["a"]}, {"files": {"a": 1}}, {"files": {"../a": "x"}},
     {"files": {"/a": "x"}}],
)  # fmt: skip
def test_a_record_that_lists_nothing_of_ours(record):
    assert files_of(record) is None


@pytest.mark.parametrize("content", [b"", b"[1]", b"{", b"\xff", b"[" * 100_000])
def test_a_damaged_record_is_none(tmp_path, content):
    (tmp_path / "record.json").write_bytes(content)
    assert read_record(tmp_path / "record.json") is None
    assert read_record(tmp_path / "missing.json") is None
