"""Whatever happens while an output is written, what was there before is still there."""

import errno
import os
import signal
import subprocess
import sys

import pytest

from versatileffn.errors import ConfigError, DataError, ResourceError
from versatileffn.workspace import folder as folder_module
from versatileffn.workspace.durable import write_json
from versatileffn.workspace.folder import check_free, claim, new_folder
from versatileffn.workspace.manifest import FILES, digests

RECORD = "record.json"


def fill(folder, text):
    (folder / "content").write_text(text)
    write_json(folder / RECORD, {FILES: digests(folder, without=[RECORD])})


def write(path, text, **options):
    with new_folder(path, RECORD, **options) as folder:
        fill(folder, text)


def test_a_folder_appears_whole_or_not_at_all(tmp_path):
    def fail_halfway():
        with new_folder(tmp_path / "out", "done") as folder:
            (folder / "half").write_text("x")
            raise RuntimeError

    with pytest.raises(RuntimeError):
        fail_halfway()
    assert not list(tmp_path.iterdir())
    with new_folder(tmp_path / "out", RECORD) as folder:
        (folder / "done").write_text("x")
        assert not (tmp_path / "out").exists()
    assert os.listdir(tmp_path) == ["out"]
    assert os.listdir(tmp_path / "out") == ["done"]


def test_only_folders_with_our_record_and_only_our_files_are_replaced(tmp_path):
    out = tmp_path / "out"
    out.mkdir()
    (out / "notes.txt").write_text("mine")
    with pytest.raises(ConfigError, match="never replaced"):
        check_free(out, RECORD, overwrite=True)
    (out / RECORD).write_text("{}")
    with pytest.raises(ConfigError, match="doesn't list its files"):
        check_free(out, RECORD, overwrite=True)
    (out / "notes.txt").unlink()
    (out / RECORD).unlink()
    write(out, "first")
    with pytest.raises(ConfigError, match="pass --overwrite"):
        check_free(out, RECORD)
    assert check_free(out, RECORD, overwrite=True) == out
    (out / "below").mkdir()
    (out / "below" / "thesis.tex").write_text("mine")
    with pytest.raises(ConfigError, match=r"holds below/thesis.tex, which"):
        write(out, "second", overwrite=True)
    assert (out / "content").read_text() == "first"
    assert os.listdir(tmp_path) == ["out"]


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
    with pytest.raises(ConfigError, match=r"can't be written|not a folder|in the way"):
        wanted.__enter__()
    assert os.listdir(tmp_path) == ["file"]


def test_a_strangers_partial_folder_is_left_alone(tmp_path):
    strangers = [tmp_path / ".out.thesis.partial", tmp_path / ".outer.partial"]
    for stranger in strangers:
        stranger.mkdir()
    write(tmp_path / "out", "x")
    assert all(stranger.exists() for stranger in strangers)


def test_a_killed_writer_leaves_nothing_that_counts_and_is_cleaned_up_after(tmp_path):
    script = (
        "import time; from pathlib import Path\n"
        "from versatileffn.workspace.folder import new_folder\n"
        f"with new_folder(Path({str(tmp_path / 'out')!r}), {RECORD!r}) as folder:\n"
        "    (folder / 'content').touch(); print('writing', flush=True); time.sleep(60)"
    )
    with subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE) as writer:
        assert writer.stdout.readline() == b"writing\n"
        with pytest.raises(ConfigError, match="another run is using"):
            write(tmp_path / "out", "second")
        writer.send_signal(signal.SIGKILL)
    assert os.listdir(tmp_path) == [".out.partial"]
    write(tmp_path / "out", "third")
    assert os.listdir(tmp_path) == ["out"]


@pytest.mark.parametrize("key", [None, "abc"])
def test_what_a_run_killed_after_publishing_left_goes_when_the_next_one_refuses(tmp_path, key):
    write(tmp_path / "out", "x", key=key)
    work = tmp_path / (f".out.partial-{key}" if key else ".out.partial")
    (work / "ready").mkdir(parents=True)
    with pytest.raises(ConfigError, match="pass --overwrite"):
        check_free(tmp_path / "out", RECORD)
    assert os.listdir(tmp_path) == ["out"]


@pytest.mark.parametrize("failure", [KeyboardInterrupt, ResourceError])
def test_work_with_a_key_is_continued_by_the_same_key_only(tmp_path, failure):
    def stop(key):
        with new_folder(tmp_path / "out", RECORD, key=key) as folder:
            (folder / "half").touch()
            raise failure

    for key in ("one", "two"):
        with pytest.raises(failure):
            stop(key)
    with new_folder(tmp_path / "out", RECORD, key="one") as folder:
        assert (folder / "half").exists()
        (folder / "half").unlink()
        fill(folder, "whole")
    assert os.listdir(tmp_path) == ["out"], "other work for the same output has no use any more"


def test_bad_input_leaves_no_work_behind(tmp_path):
    def refuse():
        with new_folder(tmp_path / "out", RECORD, key="one") as folder:
            (folder / "half").touch()
            raise DataError("bad")

    with pytest.raises(DataError):
        refuse()
    assert not os.listdir(tmp_path)


def test_finished_work_that_may_not_be_published_is_kept(tmp_path):
    def meet_another():
        with new_folder(tmp_path / "out", RECORD, key="one") as folder:
            fill(folder, "whole")
            (tmp_path / "out").mkdir()
            (tmp_path / "out" / "thesis").touch()

    with pytest.raises(ConfigError, match="never replaced"):
        meet_another()
    assert (tmp_path / ".out.partial-one" / "new" / "content").read_text() == "whole"


@pytest.mark.parametrize("exchanges", [True, False])
def test_an_older_output_changes_places_with_the_new_one(tmp_path, monkeypatch, exchanges):
    if not exchanges:
        monkeypatch.setattr(folder_module, "_exchange", refuse_to_exchange)
    write(tmp_path / "out", "first")
    write(tmp_path / "out", "second", overwrite=True)
    assert (tmp_path / "out" / "content").read_text() == "second"
    assert os.listdir(tmp_path) == ["out"]


@pytest.mark.parametrize("key", [None, "one"])
def test_an_older_output_that_was_moved_away_comes_back(tmp_path, monkeypatch, key):
    write(tmp_path / "out", "first")
    monkeypatch.setattr(folder_module, "_exchange", refuse_to_exchange)
    rename = folder_module.rename

    def die_in_the_gap(source, target):
        if source.name == "ready":
            os._exit(9)
        rename(source, target)

    child = os.fork()
    if not child:
        monkeypatch.setattr(folder_module, "rename", die_in_the_gap)
        write(tmp_path / "out", "second", overwrite=True, key=key)
        os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 9
    assert not (tmp_path / "out").exists()
    with pytest.raises(ConfigError, match="already exists"):
        write(tmp_path / "out", "third", key="another")
    assert (tmp_path / "out" / "content").read_text() == "first"
    write(tmp_path / "out", "third", overwrite=True)
    assert (tmp_path / "out" / "content").read_text() == "third"
    assert os.listdir(tmp_path) == ["out"]


def refuse_to_exchange(first, second):
    raise OSError(errno.ENOSYS, "not here")


def test_a_folder_is_claimed_once_and_never_taken(tmp_path):
    claim(tmp_path / "run", RECORD, "run")
    (tmp_path / "run" / "log").touch()
    with pytest.raises(ConfigError, match="holds no run"):
        claim(tmp_path / "run", RECORD, "run")
    claim(tmp_path / "run", RECORD, "run", own=["log"])
    (tmp_path / "run" / RECORD).touch()
    claim(tmp_path / "run", RECORD, "run")
    with pytest.raises(ConfigError, match="is a file"):
        claim(tmp_path / "run" / "log", RECORD, "run")
