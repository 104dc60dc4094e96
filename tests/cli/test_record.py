"""What `--json` may replace: a record of the same verb, and nothing else by itself."""

import json
import os

import pytest
import typer
from typer.testing import CliRunner

from versatileffn.cli.flops import flops_command
from versatileffn.cli.record import RecordFile
from versatileffn.errors import ConfigError, ResourceError

THESIS = {
    "text": b"three years of work",
    "nothing": b"",
    "a list": b"[]",
    "other JSON": b'{"flops": 3}',
    "another verb's": b'{"verb": "perplexity"}',
    "not UTF-8": b"\xff\xfe",
    "deep": b"[" * 100_000,
    "long number": b"1" * 5000,
}


def test_a_record_is_replaced_by_the_same_verb_only(tmp_path, monkeypatch):
    monkeypatch.setattr("sys.argv", ["somewhere/versatileffn", "flops", "a model"])
    path = tmp_path / "new" / "flops.json"
    RecordFile(path, "flops", []).write({"a": 1})
    RecordFile(path, "flops", []).write({"a": 2})
    written = json.loads(path.read_text())
    assert (written["verb"], written["a"]) == ("flops", 2)
    assert written["command"] == "versatileffn flops 'a model'"
    with pytest.raises(ConfigError, match="`versatileffn perplexity` didn't write it"):
        RecordFile(path, "perplexity", [])


@pytest.mark.parametrize("content", THESIS.values(), ids=THESIS)
def test_what_it_did_not_write_stays(tmp_path, content):
    path = tmp_path / "thesis"
    path.write_bytes(content)
    with pytest.raises(ConfigError, match=r"thesis already exists .*or pass --overwrite"):
        RecordFile(path, "flops", [])
    assert path.read_bytes() == content
    RecordFile(path, "flops", [], overwrite=True).write({})
    assert json.loads(path.read_text())["verb"] == "flops"


@pytest.mark.parametrize("overwrite", [True, False])
def test_an_input_is_never_replaced(tmp_path, overwrite):
    (tmp_path / "model").mkdir()
    text, config = tmp_path / "text.jsonl", tmp_path / "model" / "config.json"
    text.write_text('{"verb": "flops"}')
    config.write_text("{}")
    os.link(text, tmp_path / "same")
    for path in (text, tmp_path / "same", config, tmp_path / "model" / ".." / "text.jsonl"):
        with pytest.raises(ConfigError, match="belongs to the input"):
            RecordFile(path, "flops", [tmp_path / "model", text], overwrite)
    RecordFile(tmp_path / "model" / "flops.json", "flops", [tmp_path / "model"]).write({})
    RecordFile(tmp_path / "model" / "flops.json", "flops", [tmp_path / "model"]).write({})


@pytest.mark.parametrize("overwrite", [True, False])
def test_links_pipes_and_folders_are_refused(tmp_path, overwrite):
    (tmp_path / "thesis").write_text("important")
    (tmp_path / "link").symlink_to("thesis")
    (tmp_path / "loop").symlink_to("loop")
    os.mkfifo(tmp_path / "pipe")
    for name in ("link", "loop", "pipe"):
        with pytest.raises(ConfigError, match="is no plain file"):
            RecordFile(tmp_path / name, "flops", [], overwrite)
    with pytest.raises(ConfigError, match="Is a directory"):
        RecordFile(tmp_path, "flops", [], overwrite)
    with pytest.raises(ConfigError, match="can't be written"):
        RecordFile(tmp_path / "loop" / "x.json", "flops", [], overwrite)
    assert (tmp_path / "thesis").read_text() == "important"


def test_what_appeared_while_the_verb_worked_stays(tmp_path):
    file = RecordFile(tmp_path / "a.json", "flops", [])
    (tmp_path / "a.json").write_text("important")
    with pytest.raises(ConfigError, match="didn't write it"):
        file.write({})
    assert (tmp_path / "a.json").read_text() == "important"


def test_a_full_disk_is_one_line(tmp_path, monkeypatch):
    file = RecordFile(tmp_path / "a.json", "flops", [])

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(ResourceError, match=r"the disk is full \(.* free\)"):
        file.write({})
    assert not (tmp_path / "a.json").exists()


def test_names_that_are_not_utf8_come_back_as_they_were(tmp_path):
    name = os.fsdecode(b"caf\xe9")
    RecordFile(tmp_path / name, "flops", []).write({"model": name})
    assert json.loads((tmp_path / name).read_text())["model"] == name


def test_the_command_refuses_before_it_works(tmp_path):
    app = typer.Typer()
    app.command()(flops_command)
    (tmp_path / "thesis").write_text("important")
    done = CliRunner().invoke(app, ["354m", "--no-memory", "--json", str(tmp_path / "thesis")])
    assert isinstance(done.exception, ConfigError)
    assert not done.output
    given = ["354m", "--no-memory", "--json", str(tmp_path / "thesis"), "--overwrite"]
    assert CliRunner().invoke(app, given).exit_code == 0
    assert json.loads((tmp_path / "thesis").read_text())["verb"] == "flops"
