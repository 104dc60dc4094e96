"""Whatever happens while an output is written, what was there before is still there."""

import os
import signal
import subprocess
import sys
import time

import pytest

from versatileffn.errors import ConfigError
from versatileffn.files import check_free, locked, new_folder, write_json


def test_a_folder_appears_whole_or_not_at_all(tmp_path):
    def fail_halfway():
        with new_folder(tmp_path / "out", "done") as folder:
            (folder / "half").write_text("x")
            raise RuntimeError

    with pytest.raises(RuntimeError):
        fail_halfway()
    assert not list(tmp_path.iterdir())
    with new_folder(tmp_path / "out", "done") as folder:
        (folder / "done").write_text("x")
        assert not (tmp_path / "out").exists()
    assert os.listdir(tmp_path) == ["out"]
    assert os.listdir(tmp_path / "out") == ["done"]


def test_only_folders_with_the_marker_are_replaced(tmp_path):
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(ConfigError, match="never replaced"):
        check_free(tmp_path, "done", overwrite=True)
    (tmp_path / "done").touch()
    with pytest.raises(ConfigError, match="pass --overwrite"):
        check_free(tmp_path, "done")
    assert check_free(tmp_path, "done", overwrite=True) == tmp_path


def test_links_are_followed_and_other_things_left_alone(tmp_path):
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "real")
    with new_folder(tmp_path / "link", "done") as folder:
        (folder / "done").touch()
    assert (tmp_path / "link").is_symlink()
    assert (tmp_path / "real" / "done").exists()
    (tmp_path / "dangling").symlink_to(tmp_path / "nowhere")
    (tmp_path / "file").touch()
    os.mkfifo(tmp_path / "fifo")
    for name in ("dangling", "file", "fifo"):
        with pytest.raises(ConfigError, match="not a folder"):
            check_free(tmp_path / name, "done", overwrite=True)


@pytest.mark.parametrize("name", ["x" * 300, "a\0b", "file/below"])
def test_a_place_that_cannot_be_written(tmp_path, name):
    (tmp_path / "file").touch()
    wanted = new_folder(tmp_path / name, "done")
    with pytest.raises(ConfigError, match=r"can't be written|not a folder"):
        wanted.__enter__()
    assert os.listdir(tmp_path) == ["file"]


def test_a_strangers_partial_folder_is_left_alone(tmp_path):
    stranger = tmp_path / ".out.thesis.partial"
    stranger.mkdir()
    with new_folder(tmp_path / "out", "done") as folder:
        (folder / "done").touch()
    assert stranger.exists()


def test_a_killed_writer_leaves_nothing_that_counts_and_is_cleaned_up_after(tmp_path):
    script = (
        "import time, sys; from pathlib import Path; from versatileffn.files import new_folder\n"
        f"with new_folder(Path({str(tmp_path / 'out')!r}), 'done') as folder:\n"
        "    (folder / 'done').touch(); print('writing', flush=True); time.sleep(60)"
    )
    with subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE) as writer:
        assert writer.stdout.readline() == b"writing\n"
        with new_folder(tmp_path / "out", "done") as folder:  # two at once don't meet
            (folder / "done").write_text("second")
        assert len(list(tmp_path.iterdir())) == 2
        writer.send_signal(signal.SIGKILL)
    time.sleep(0.1)
    assert (tmp_path / "out" / "done").read_text() == "second"
    with new_folder(tmp_path / "out", "done", overwrite=True) as folder:
        (folder / "done").write_text("third")
    assert os.listdir(tmp_path) == ["out"]


def test_a_folder_is_held_by_one(tmp_path):
    with locked(tmp_path, "this folder"):
        second = locked(tmp_path, "this folder")
        with pytest.raises(ConfigError, match="another run is using this folder"):
            second.__enter__()
    with locked(tmp_path, "this folder"):
        pass


def test_json_is_strict_and_atomic(tmp_path):
    write_json(tmp_path / "a.json", {"ok": 1})
    with pytest.raises(ValueError, match="not JSON compliant"):
        write_json(tmp_path / "a.json", {"bad": float("nan")})
    assert (tmp_path / "a.json").read_text() == '{\n  "ok": 1\n}\n'
