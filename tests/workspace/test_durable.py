"""Files are written whole, synced, and never through a link."""

import errno
import os
import shutil

import pytest

from versatileffn.errors import ConfigError, DataError, ResourceError, VersatileFFNError
from versatileffn.workspace import durable
from versatileffn.workspace.durable import (
    append,
    beside,
    check_space,
    rename,
    sync_tree,
    write_bytes,
    write_json,
    writing,
)


def test_json_is_strict_and_atomic(tmp_path):
    write_json(tmp_path / "a.json", {"ok": 1})
    with pytest.raises(ValueError, match="not JSON compliant"):
        write_json(tmp_path / "a.json", {"bad": float("nan")})
    assert (tmp_path / "a.json").read_text() == '{\n  "ok": 1\n}\n'
    assert os.listdir(tmp_path) == ["a.json"]


@pytest.mark.parametrize("place", ["the file", "its partial"])
def test_links_are_replaced_and_what_they_name_is_untouched(tmp_path, place):
    thesis, path = tmp_path / "thesis", tmp_path / "a.json"
    thesis.write_text("years")
    (path if place == "the file" else beside(path)).symlink_to(thesis)
    write_json(path, {})
    assert thesis.read_text() == "years"
    assert not path.is_symlink()


def test_appending_through_a_link_is_refused(tmp_path):
    thesis = tmp_path / "thesis"
    thesis.write_text("years")
    (tmp_path / "log").symlink_to(thesis)
    with pytest.raises(OSError, match=os.strerror(errno.ELOOP)):
        append(tmp_path / "log", b"line")
    assert thesis.read_text() == "years"


def test_what_is_written_is_on_disk_before_it_has_its_name(tmp_path, monkeypatch):
    calls = record_calls(monkeypatch)
    write_bytes(tmp_path / "a", b"x")
    assert calls == ["fsync .a.partial", "replace a", f"fsync {tmp_path.name}"]
    calls.clear()
    append(tmp_path / "log", b"x")
    append(tmp_path / "log", b"y")
    assert calls == ["fsync log", f"fsync {tmp_path.name}", "fsync log"]
    assert (tmp_path / "log").read_bytes() == b"xy"


def test_a_tree_is_synced_from_its_leaves(tmp_path, monkeypatch):
    (tmp_path / "tree" / "below").mkdir(parents=True)
    (tmp_path / "tree" / "below" / "file").touch()
    calls = record_calls(monkeypatch)
    sync_tree(tmp_path / "tree")
    rename(tmp_path / "tree", tmp_path / "published")
    assert calls == [
        "fsync file",
        "fsync below",
        "fsync tree",
        "replace published",
        f"fsync {tmp_path.name}",
    ]


def record_calls(monkeypatch):
    calls, fsync, replace = [], os.fsync, os.replace

    def recording_fsync(descriptor):
        calls.append(f"fsync {os.path.basename(os.readlink(f'/proc/self/fd/{descriptor}'))}")
        fsync(descriptor)

    def recording_replace(source, target):
        calls.append(f"replace {os.path.basename(target)}")
        replace(source, target)

    monkeypatch.setattr(os, "fsync", recording_fsync)
    monkeypatch.setattr(os, "replace", recording_replace)
    return calls


@pytest.mark.parametrize(
    "error",
    [OSError(errno.ENOSPC, "full"), OSError(errno.EDQUOT, "full"),
     RuntimeError(f"writer failed: {os.strerror(errno.ENOSPC)} (os error 28)")],
)  # fmt: skip
def test_a_full_disk_is_said_in_one_line_whoever_found_it(tmp_path, error):
    with pytest.raises(ResourceError, match=r"the disk is full \(.* free\)"), writing(tmp_path):
        raise error


@pytest.mark.parametrize("error", [
    OSError(errno.EIO, "broken"), Exception("Input/output error (os error 5)"),
])  # fmt: skip
def test_a_disk_that_fails_is_not_the_outputs_fault(tmp_path, error):
    with pytest.raises(ResourceError, match="see to the disk and run the same"), writing(tmp_path):
        raise error


@pytest.mark.parametrize(("answer", "said"), [
    (errno.ENOSPC, "the disk is full"), (errno.EROFS, "Read-only.*choose another output"),
    (None, "see to the disk"),
])  # fmt: skip
def test_the_system_is_asked_why_torch_cant_write(tmp_path, monkeypatch, answer, said):
    """Of a disk that takes nothing, `torch.save` says that it failed, and not why."""

    def refuse(path, flags):
        raise OSError(answer, os.strerror(answer))

    if answer is not None:
        monkeypatch.setattr(durable, "open_own", refuse)
    with pytest.raises(VersatileFFNError, match=said), writing(tmp_path):
        raise RuntimeError("PytorchStreamWriter failed writing file data.pkl: file write failed")
    assert not list(tmp_path.iterdir())


def test_other_errors_keep_their_kind(tmp_path):
    with pytest.raises(DataError, match="Permission"), writing(tmp_path, DataError):
        raise PermissionError(errno.EACCES, "Permission denied")
    with pytest.raises(KeyError), writing(tmp_path):
        raise KeyError("ours")
    with pytest.raises(ConfigError, match="as it was"), writing(tmp_path, DataError):
        raise ConfigError("as it was")


def test_space_is_looked_at_before_it_is_used(tmp_path, monkeypatch):
    usage = shutil.disk_usage(tmp_path)._replace(free=3 * 2**20)
    monkeypatch.setattr(durable.shutil, "disk_usage", lambda path: usage)
    check_space(tmp_path / "not" / "yet", 3 * 2**20)
    with pytest.raises(ResourceError, match=r"needs 5.0 MiB .* 3.0 MiB free: free 2.0 MiB"):
        check_space(tmp_path / "not" / "yet", 5 * 2**20)
