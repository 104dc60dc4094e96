"""A folder is held by one process at a time."""

import multiprocessing

import pytest

from versatileffn.errors import ConfigError, DataError
from versatileffn.workspace.lock import LOCK, locked


def test_a_folder_is_held_by_one(tmp_path):
    with locked(tmp_path, "this folder"):
        second = locked(tmp_path, "this folder")
        with pytest.raises(ConfigError, match="another run is using this folder"):
            second.__enter__()
    with locked(tmp_path, "this folder"):
        pass


def test_a_lock_follows_and_truncates_nothing(tmp_path):
    thesis = tmp_path / "thesis"
    thesis.write_text("years")
    (tmp_path / LOCK).symlink_to(thesis)
    with pytest.raises(DataError, match="can't be written"):
        locked(tmp_path, "it", DataError).__enter__()
    (tmp_path / LOCK).unlink()
    (tmp_path / LOCK).write_text("a file of that name")
    with locked(tmp_path, "it"):
        pass
    assert thesis.read_text() == "years"
    assert (tmp_path / LOCK).read_text() == "a file of that name"


def test_a_removed_lock_holds_nobody_back(tmp_path):
    with locked(tmp_path, "it"):
        (tmp_path / LOCK).unlink()
        with locked(tmp_path, "it"):
            pass


def test_a_dead_process_holds_nothing(tmp_path):
    context = multiprocessing.get_context("fork")
    child = context.Process(target=lambda: locked(tmp_path, "it").__enter__())
    child.start()
    child.join()
    with locked(tmp_path, "it"):
        pass
