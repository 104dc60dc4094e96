"""`versatileffn verify`: every file is what was written, or the exit code says so."""

import json

import pytest
from typer.testing import CliRunner

from versatileffn.cli.main import app
from versatileffn.cli.verify import RECORDS
from versatileffn.workspace.manifest import digests


def verify(*folders):
    return CliRunner().invoke(app, ["verify", *map(str, folders)])


def make(folder, record="receipt.json"):
    """A folder as one of ours: two files, and a record of them."""
    (folder / "model").mkdir(parents=True)
    (folder / "model" / "weights").write_bytes(b"weights")
    (folder / "config").write_bytes(b"config")
    (folder / record).write_text(json.dumps({"files": digests(folder)}))
    return folder


@pytest.mark.parametrize("record", RECORDS)
def test_what_is_whole_is_said_to_be(tmp_path, record):
    make(tmp_path / "one", record)
    done = verify(tmp_path / "one")
    assert done.exit_code == 0
    assert done.output == f"ok       {tmp_path / 'one'}  {RECORDS[record]}, 2 files\n"


@pytest.mark.parametrize("change", ["one bit", "same size", "missing", "emptied"])
def test_damage(tmp_path, change):
    whole, other = make(tmp_path / "a"), make(tmp_path / "b")
    weights = other / "model" / "weights"
    if change == "missing":
        weights.unlink()
    else:
        weights.write_bytes({"one bit": b"wdights", "same size": b"\0" * 7, "emptied": b""}[change])
    done = verify(tmp_path)
    assert done.exit_code == 1
    lines = done.output.splitlines()
    assert lines[0] == f"ok       {whole}  converted model, 2 files"
    assert lines[1].startswith(f"DAMAGED  {other}  converted model: model/weights ")
    assert len(lines) == 2


@pytest.mark.parametrize("content", ["{}", '{"files": {}}', "[]", "{", ""])
def test_a_record_without_digests_is_no_proof(tmp_path, content):
    (make(tmp_path / "one") / "receipt.json").write_text(content)
    done = verify(tmp_path)
    assert done.exit_code == 1
    assert "DAMAGED" in done.output


def test_an_outer_record_vouches_for_an_inner_one(tmp_path):
    (tmp_path / "stage").mkdir()
    (tmp_path / "stage" / "receipt.json").write_text('{"source": "dense"}')
    assert verify(tmp_path).exit_code == 1
    (tmp_path / "stage.json").write_text(json.dumps({"files": digests(tmp_path)}))
    assert verify(tmp_path).exit_code == 0
    (tmp_path / "stage" / "receipt.json").write_text('{"source": "other"}')
    assert verify(tmp_path).exit_code == 1


def test_a_folder_with_nothing_of_ours(tmp_path, monkeypatch, capsys):
    done = verify(tmp_path)
    assert done.exit_code == 1
    assert "holds nothing that could be checked" in str(done.exception)
    assert "is no folder" in str(verify(tmp_path / "nowhere").exception)


def test_work_that_a_killed_run_left_is_passed_over(tmp_path):
    make(tmp_path / "one")
    left = make(tmp_path / ".one.partial" / "new")
    (left / "config").write_bytes(b"half")
    assert verify(tmp_path).exit_code == 0
