"""Nothing in a file that a verb reads is unpickled into code, whichever file it is."""

import pickle
from pathlib import Path

import pytest
import torch

from security.conftest import Place
from security.payload import by_torch, plain, put
from support.command_line import run

PICKLED = (".pt", ".pth", ".bin", ".distcp", ".metadata")
"""Endings under which somebody may expect a pickle."""
READERS = {
    "run": [["train", "run.yaml"], ["verify", "run"]],
    "tokens": [["train", "run.yaml"], ["plan", "run.yaml", "--gpu", "h200"], ["verify", "tokens"],
               ["perplexity", "model", "tokens"]],
    "model": [["generate", "model", "w1 w2", "--max-new-tokens", "1"], ["verify", "model"],
              ["upcycle", "model", "out"], ["export", "model", "out"]],
}  # fmt: skip
"""What reads a file below each folder."""


def files_of(place: Place) -> list[Path]:
    """Every file of a place, relative to it."""
    found = sorted(path for path in place.root.rglob("*") if path.is_file())
    return [path.relative_to(place.root) for path in found if path.name != ".lock"]


@pytest.fixture
def canary(tmp_path) -> Path:
    return tmp_path / "canary"


@pytest.mark.parametrize("content", [plain, by_torch])
def test_the_payload_is_one(content, canary, tmp_path):
    file = tmp_path / "file"
    file.write_bytes(content(canary))
    if content is plain:
        pickle.loads(file.read_bytes())
    else:
        torch.load(file, weights_only=False)
    assert canary.exists()


def walk(place: Place, canary: Path, patch, capsys, readers=READERS) -> int:
    """Put the payload in each file's place in turn, and run what reads it; how many were tried."""
    tried = 0
    for name in files_of(place):
        if name.parts[0] not in readers:
            continue
        path, kinds = place.root / name, [plain]
        if name.suffix in PICKLED or name.name in PICKLED:
            kinds.append(by_torch)
        before = {p: p.read_bytes() for p in place.root.rglob("*") if p.is_file()}
        for kind in kinds:
            for command in readers[name.parts[0]]:
                put(path, kind(canary), place.root)
                code = run(patch, *command)
                said = capsys.readouterr().err
                assert not canary.exists(), f"{command} ran what is in {name}"
                assert code in (0, 1), (command, name)
                assert "Traceback" not in said, (command, name, said)
                _put_back(place, before)
                tried += 1
    return tried


def _put_back(place: Place, before: dict[Path, bytes]) -> None:
    for path in place.root.rglob("*"):
        if path.is_file() and path not in before:
            path.unlink()
    for path, content in before.items():
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    for path in sorted(place.root.rglob("*"), reverse=True):
        if path.is_dir() and not any(path.iterdir()):
            path.rmdir()


def test_no_file_of_a_run_its_tokens_or_its_model_is_run(
    original, copied, canary, monkeypatch, capsys
):
    assert walk(copied(original), canary, monkeypatch, capsys) > 40


def test_no_file_of_a_checkpoint_in_shares_is_run(in_shares, copied, canary, monkeypatch, capsys):
    readers = {"run": READERS["run"]}  # the other folders are as above
    assert walk(copied(in_shares), canary, monkeypatch, capsys, readers) > 10


@pytest.mark.parametrize("content", [plain, by_torch])
@pytest.mark.parametrize("name", ["pytorch_model.bin", "training_args.bin", "adapter_model.bin"])
def test_a_pickle_beside_or_instead_of_the_weights(
    name, content, original, copied, canary, monkeypatch, capsys
):
    place = copied(original)
    (place.model / name).write_bytes(content(canary))
    for instead in (False, True):
        if instead:
            (place.model / "model.safetensors").unlink()
        code = run(monkeypatch, "generate", "model", "w1", "--max-new-tokens", "1")
        assert not canary.exists()
        assert code == int(instead)
        assert "Traceback" not in capsys.readouterr().err


def test_what_we_write_are_safetensors_and_json_but_for_three_files(original, in_shares):
    """SECURITY.md names them; they are read without unpickling objects."""
    endings = {"optimizer.pt", "scheduler.pt", "rng_state.pth", "training_args.bin"}
    for place in (original, in_shares):
        for name in files_of(place):
            text = name.suffix in (".json", ".jsonl", ".yaml", ".jinja")
            tensors = name.suffix in (".safetensors", ".ds")
            assert text or tensors or name.name in endings, name
