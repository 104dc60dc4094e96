"""What a power loss leaves: the model, case by case."""

import os
from collections.abc import Callable
from pathlib import Path

from crash.disk import CONTENTS, FILE, KILL, MIXED, NAMES, Disk, Tree, lay_out


class Actor:
    """Does to a folder what a program does, telling the disk."""

    def __init__(self, root: Path) -> None:
        self.root, self.disk = root, Disk(root)

    def does(self, call: str, name: str, action: Callable[[Path], object] = lambda p: None) -> None:
        path = self.root / name
        self.disk.look()
        self.disk.happens(call, path.stat().st_ino if path.exists() else 0, str(path))
        action(path)

    def writes(self, name: str, text: str) -> None:
        self.does("open, truncating", name, lambda path: path.write_text(text))

    def syncs(self, name: str) -> None:
        self.does("fsync", name)

    def renames(self, name: str, to: str) -> None:
        self.does("rename", name, lambda path: path.rename(self.root / to))

    def left(self, mode: str, seed: int = 0) -> dict[str, str]:
        """Files and what is in them."""
        self.disk.look()
        tree = self.disk.after(mode, seed)
        return {p: self.disk.blobs[c].decode() for p, (kind, c) in tree.items() if kind == FILE}


def test_without_any_sync(tmp_path: Path) -> None:
    (tmp_path / "old").write_text("before")
    actor = Actor(tmp_path)
    actor.writes("new", "text")
    actor.does("unlink", "old", Path.unlink)
    assert actor.left(KILL) == {"new": "text"}
    assert actor.left(CONTENTS) == {"new": ""}
    assert actor.left(NAMES) == {"old": "before"}


def test_content_and_name_are_two_things(tmp_path: Path) -> None:
    actor = Actor(tmp_path)
    actor.writes("a", "text")
    actor.syncs("a")
    assert actor.left(CONTENTS) == {"a": "text"}
    assert actor.left(NAMES) == {}
    actor.syncs("")
    assert actor.left(NAMES) == {"a": "text"}
    actor.writes("b", "text")
    actor.syncs("")
    assert actor.left(NAMES) == {"a": "text", "b": ""}


def test_a_replaced_file_is_the_old_or_the_new(tmp_path: Path) -> None:
    (tmp_path / "a").write_text("old")
    actor = Actor(tmp_path)
    actor.writes("b", "new")
    actor.syncs("b")
    actor.renames("b", "a")
    assert actor.left(CONTENTS) == {"a": "new"}
    assert actor.left(NAMES) == {"a": "old"}
    actor.syncs("")
    assert actor.left(NAMES) == {"a": "new"}


def test_appending_and_truncating(tmp_path: Path) -> None:
    (tmp_path / "log").write_text("one")
    actor = Actor(tmp_path)
    actor.does("open", "log", lambda path: path.write_text("one two"))
    assert actor.left(CONTENTS) == {"log": "one"}
    assert {actor.left(MIXED, seed)["log"] for seed in range(20)} == {"one", "one two", "\0" * 7}
    actor.syncs("log")
    assert actor.left(CONTENTS) == actor.left(NAMES) == {"log": "one two"}
    actor.writes("log", "three")
    assert actor.left(CONTENTS) == {"log": ""}
    assert actor.left(NAMES) == {"log": "one two"}


def test_an_inode_that_is_used_again_is_another_file(tmp_path: Path) -> None:
    (tmp_path / "a").write_text("secret")
    actor = Actor(tmp_path)
    actor.does("unlink", "a", Path.unlink)
    actor.writes("b", "text")
    assert actor.left(CONTENTS) == {"b": ""}


def test_a_move_between_folders_is_one_step(tmp_path: Path) -> None:
    (tmp_path / "work").mkdir()
    (tmp_path / "work" / "a").write_text("text")
    actor = Actor(tmp_path)
    actor.renames("work/a", "a")
    assert actor.left(NAMES) == {"work/a": "text"}
    actor.syncs("")
    assert actor.left(NAMES) == {"a": "text"}


def test_an_exchange_of_folders_is_one_step(tmp_path: Path) -> None:
    for name in ("work/new", "out"):
        (tmp_path / name).mkdir(parents=True)
        (tmp_path / name / "file").write_text(name)
    actor = Actor(tmp_path)

    def exchange(path: Path) -> None:
        path.rename(tmp_path / "aside")
        (tmp_path / "out").rename(path)
        (tmp_path / "aside").rename(tmp_path / "out")

    actor.does("exchange", "work/new", exchange)
    assert actor.left(NAMES) == {"work/new/file": "work/new", "out/file": "out"}
    actor.syncs("")
    assert actor.left(NAMES) == {"work/new/file": "out", "out/file": "work/new"}


def test_a_folder_that_was_never_synced_comes_back_empty(tmp_path: Path) -> None:
    actor = Actor(tmp_path)
    actor.does("mkdir", "a", Path.mkdir)
    actor.writes("a/file", "text")
    actor.syncs("a/file")
    actor.syncs("")
    assert actor.left(NAMES) == {}
    assert "a" in actor.disk.after(NAMES)
    actor.syncs("a")
    assert actor.left(NAMES) == {"a/file": "text"}


def test_a_change_within_a_clock_tick_is_seen(tmp_path: Path) -> None:
    actor = Actor(tmp_path)
    for text in ("aaa", "bbb", "ccc"):
        (tmp_path / "a").write_text(text)
        assert actor.left(KILL) == {"a": text}


def test_laying_out_what_was_seen(tmp_path: Path) -> None:
    (tmp_path / "one" / "folder").mkdir(parents=True)
    (tmp_path / "one" / "folder" / "file").write_text("text")
    os.symlink("nowhere", tmp_path / "one" / "link")
    disk = Disk(tmp_path / "one")
    tree: Tree = disk.after(KILL)
    lay_out(tree, disk.blobs, tmp_path / "two")
    assert Disk(tmp_path / "two").after(KILL) == tree
