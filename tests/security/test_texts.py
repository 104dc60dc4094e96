"""YAML and JSON are data: no object is made of them, and little text doesn't become much."""

import gzip
import json
import lzma
import subprocess
import sys
from pathlib import Path

import pyarrow as pa
import pytest

from support.command_line import run
from versatileffn.errors import ConfigError
from versatileffn.training.config_file import apply_overrides, read_yaml
from versatileffn.workspace.manifest import read_record

TAGS = [
    "!!python/object/apply:pathlib.Path.touch [!!python/object/apply:pathlib.Path [{canary}]]",
    "!!python/object/apply:os.mknod [{canary}]",
    "!!python/name:os.system ''",
    "!!python/object/new:os.mknod [{canary}]",
]


@pytest.mark.parametrize("tag", TAGS)
def test_yaml_makes_no_objects(tag, tmp_path):
    canary = tmp_path / "canary"
    file = tmp_path / "run.yaml"
    file.write_text(f"model: {tag.format(canary=canary)}\n")
    with pytest.raises(ConfigError, match="can't be parsed"):
        read_yaml(file)
    with pytest.raises(ConfigError, match="can't be parsed"):
        apply_overrides({}, [f"model.ffn={tag.format(canary=canary)}"])
    assert not canary.exists()


@pytest.mark.parametrize("text", [
    "a: &a [x]\nb: [*a, *a]\n", "a: " + "[" * 100_000, "a: " + "9" * 100_000, "x" * 2**21,
], ids=["aliases", "depth", "digits", "length"])  # fmt: skip
def test_a_small_file_of_much_is_refused(text, tmp_path):
    file = tmp_path / "run.yaml"
    file.write_text(text)
    with pytest.raises(ConfigError) as caught:
        read_yaml(file)
    assert "\n" not in str(caught.value)


def test_json_without_end_is_no_record(tmp_path):
    file = tmp_path / "meta.json"
    for content in (b"[" * 200_000, b'{"a": ' * 100_000, b"\xff\xfe", b"1" + b"0" * 10_000):
        file.write_bytes(content)
        assert read_record(file) is None


@pytest.mark.parametrize("record", ["meta.json", "contents.json", "receipt.json", "export.json",
                                    "run.json", "analysis.json", "stage.json"])  # fmt: skip
@pytest.mark.parametrize("name", ["../secret", "/etc/hostname", "a/../../secret"])
def test_a_record_names_nothing_outside_of_its_folder(record, name, tmp_path, monkeypatch, capsys):
    (tmp_path / "secret").write_text("s")
    folder = tmp_path / "folder"
    folder.mkdir()
    (folder / record).write_text(json.dumps({"files": {name: "0" * 64}}))
    opened = []
    monkeypatch.setattr("versatileffn.workspace.manifest.sha256", lambda path: opened.append(path))
    assert run(monkeypatch, "verify", folder) == 1
    assert opened == []
    assert "DAMAGED" in capsys.readouterr().out


@pytest.mark.parametrize("link", ["run", "run/checkpoints", "run/log.jsonl", "run/inputs.json"])
def test_a_link_in_a_run_folder_leads_no_writing_elsewhere(
    link, original, copied, monkeypatch, capsys
):
    place = copied(original)
    before = place.root / link
    elsewhere = place.root / "elsewhere"
    before.rename(elsewhere)
    before.symlink_to(elsewhere)

    def content(path: Path) -> dict[str, bytes]:
        files = [path] if path.is_file() else path.rglob("*")
        return {str(p.relative_to(path)): p.read_bytes() for p in files if p.is_file()}

    was = content(elsewhere)
    code = run(monkeypatch, "train", "run.yaml")
    assert "Traceback" not in capsys.readouterr().err
    if link in ("run/log.jsonl", "run/inputs.json"):  # a file of ours is written anew, not through
        assert content(elsewhere) == was
    else:  # a folder that somebody put elsewhere is theirs to put
        assert code in (0, 1)


BOMBS = """
import resource, sys
import psutil
from versatileffn.data import decoding, readers
from versatileffn.data.corpus import find_corpus
from versatileffn.errors import DataError
decoding.MAX_DOCUMENT_BYTES = readers.MAX_DOCUMENT_BYTES = most = int(sys.argv[1])
limit = psutil.Process().memory_info().vms + 16 * most
resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
def peak(): return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
before = peak()
for folder in sys.argv[2:]:
    try:
        for document in find_corpus(folder).pieces()[0]:
            pass
    except DataError as error:
        print("refused:", error)
print(peak() - before)
"""
DOCUMENT = 2**25
"""Bytes of a document, at most; as shipped it is a GiB, which takes a minute to reach."""
COMPRESSED = {
    "one-line.jsonl.gz": gzip.compress,
    "one-text.txt.zst": lambda content: pa.compress(content, "zstd", asbytes=True),
    "one-text.txt.xz": lzma.compress,
}


def test_real_bombs_end_in_bounded_memory(tmp_path):
    """1.25 GiB of one letter each, in a few hundred kilobytes."""
    for name, compress in COMPRESSED.items():
        file = tmp_path / name.replace(".", "-") / name
        file.parent.mkdir()
        file.write_bytes(compress(b"a" * 2**24) * 80)
        assert file.stat().st_size < 2**21
    done = subprocess.run(
        [sys.executable, "-c", BOMBS, str(DOCUMENT), *map(str, sorted(tmp_path.iterdir()))],
        capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    *refusals, grown = done.stdout.splitlines()
    assert len(refusals) == len(COMPRESSED)
    assert all("a document of more than" in refusal for refusal in refusals)
    assert int(grown) < 8 * DOCUMENT
