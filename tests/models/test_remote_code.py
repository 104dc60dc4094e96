"""Code that lies with a checkpoint never runs unasked, whatever waits on standard input."""

import ast
import io
import json
import sys
from pathlib import Path

import pytest
import torch
import transformers
import yaml
from transformers import LlamaConfig, LlamaForCausalLM

import versatileffn as vf
from support.command_line import run
from support.models import SHAPE
from versatileffn.cli.main import app
from versatileffn.data.tokenizers import train_bpe
from versatileffn.errors import CheckpointError

SOURCES = Path(vf.__file__).parent
CODE = """
from pathlib import Path
from transformers import LlamaConfig, PreTrainedTokenizerFast
Path({canary!r}).touch()
class AlienConfig(LlamaConfig):
    model_type = "alien"
class AlienTokenizer(PreTrainedTokenizerFast):
    pass
"""
WITHOUT_CHECKPOINTS = {"push", "reproduce", "verify"}
"""Verbs that load no checkpoint, or none but those that versatileffn wrote."""


@pytest.fixture(scope="module")
def dense_folder(tmp_path_factory):
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("dense")
    LlamaForCausalLM(LlamaConfig(**(SHAPE | {"vocab_size": 300}))).save_pretrained(folder)
    train_bpe(["a text of some words"] * 3, 300).save_pretrained(folder)
    return folder


@pytest.fixture
def canary(tmp_path, monkeypatch):
    """What the alien code touches when it runs."""
    modules = str(tmp_path / "modules")  # where Transformers copies such code before it runs it
    monkeypatch.setattr(transformers.dynamic_module_utils, "HF_MODULES_CACHE", modules)
    monkeypatch.setattr(sys, "path", [*sys.path])
    return tmp_path / "canary"


@pytest.fixture
def alien_model(tmp_path, dense_folder, canary):
    """A checkpoint whose config, and so whose model, is a class of its own."""
    return _alien(tmp_path / "alien-model", dense_folder, canary, "config.json", {
        "model_type": "alien",
        "auto_map": {"AutoConfig": "alien.AlienConfig", "AutoModelForCausalLM": "alien.Alien"},
    })  # fmt: skip


@pytest.fixture
def alien_tokenizer(tmp_path, dense_folder, canary):
    """An ordinary checkpoint, whose tokenizer is a class of its own."""
    return _alien(tmp_path / "alien-tokenizer", dense_folder, canary, "tokenizer_config.json", {
        "tokenizer_class": "AlienTokenizer",
        "auto_map": {"AutoTokenizer": [None, "alien.AlienTokenizer"]},
    })  # fmt: skip


def _alien(folder, dense_folder, canary, edited, change):
    folder.mkdir()
    for path in dense_folder.iterdir():
        (folder / path.name).write_bytes(path.read_bytes())
    content = json.loads((folder / edited).read_text())
    (folder / edited).write_text(json.dumps(content | change))
    (folder / "alien.py").write_text(CODE.format(canary=str(canary)))
    return folder


@pytest.fixture
def commands(tmp_path, dense_folder):
    """For each verb, what makes it load a model or a tokenizer."""
    text, run_yaml = tmp_path / "texts", tmp_path / "run.yaml"
    text.mkdir()
    for number in range(3):
        (text / f"{number}.txt").write_text(f"text {number} of some words\n" * 20)

    def tokenize(source):
        return ["tokenize", text, "--tokenizer", source, "--out", tmp_path / "tokens"]

    def train(source):
        run_yaml.write_text(yaml.safe_dump({
            "model": {"init_from": str(source)},
            "data": {"tokens": str(tmp_path / "own-tokens"), "seq_len": 8},
            "optim": {"learning_rate": 1e-3},
            "run": {"output_dir": str(tmp_path / "run"), "max_steps": 1, "tokens_per_batch": 8,
                    "per_device_train_batch_size": 1, "report_to": []},
        }))  # fmt: skip
        return ["train", run_yaml]

    def plan(source):
        return ["plan", train(source)[1], "--gpu", "h200"]

    before = {
        "train": ["tokenize", text, "--tokenizer", dense_folder, "--out", tmp_path / "own-tokens",
                  "--val-documents", "1"],
    }  # fmt: skip
    return before, {
        "upcycle": lambda source: ["upcycle", source, tmp_path / "out"],
        "evaluate": lambda source: ["evaluate", source, "--out", tmp_path / "scores"],
        "perplexity": lambda source: ["perplexity", source, text],
        "flops": lambda source: ["flops", source, "--no-memory", "--measure", text],
        "bench": lambda source: ["bench", source, "--work", "prefill"],
        "calibrate": lambda source: ["calibrate", source, text],
        "generate": lambda source: ["generate", source, "some words"],
        "chat": lambda source: ["chat", source],
        "doctor": lambda source: ["doctor", source],
        "analyze": lambda source: ["analyze", "loops", source, text, "--out", tmp_path / "views"],
        "export": lambda source: ["export", source, tmp_path / "out"],
        "tokenize": tokenize,
        "train": train,
        "plan": plan,
    }


def test_every_verb_is_walked(commands):
    verbs = {command.name for command in app.registered_commands}
    assert set(commands[1]) == verbs - WITHOUT_CHECKPOINTS


@pytest.mark.parametrize(
    "verb",
    ["upcycle", "evaluate", "perplexity", "flops", "bench", "train", "calibrate", "generate",
     "chat", "doctor", "analyze", "export", "plan"],
)  # fmt: skip
def test_a_model_of_its_own_is_refused(verb, commands, alien_model, canary, monkeypatch, capsys):
    before, after = commands
    if verb in before:
        assert run(monkeypatch, *before[verb]) == 0
        capsys.readouterr()
    assert run(monkeypatch, *after[verb](alien_model)) == 1
    shown = capsys.readouterr()
    assert "--trust-remote-code" in shown.err
    assert "y/N" not in shown.out + shown.err
    assert not canary.exists()


@pytest.mark.parametrize(
    "verb", ["upcycle", "evaluate", "perplexity", "flops", "tokenize", "generate"]
)
def test_a_tokenizer_of_its_own_is_refused(
    verb, commands, alien_tokenizer, canary, monkeypatch, capsys
):
    assert run(monkeypatch, *commands[1][verb](alien_tokenizer)) == 1
    shown = capsys.readouterr()
    assert "--trust-remote-code" in shown.err
    assert "y/N" not in shown.out + shown.err
    assert not canary.exists()


def test_with_the_flag_it_runs(alien_model, commands, canary, monkeypatch, capsys):
    command = [*commands[1]["upcycle"](alien_model), "--trust-remote-code"]
    assert run(monkeypatch, *command) == 1
    assert "family 'alien'" in capsys.readouterr().err
    assert canary.exists()


def test_in_python(alien_model, alien_tokenizer, canary, monkeypatch):
    monkeypatch.setattr(sys, "stdin", io.StringIO("y\n" * 20))
    for source in (alien_model, alien_tokenizer):
        with pytest.raises(CheckpointError, match="trust_remote_code=True"):
            vf.upcycle(source)
    assert not canary.exists()
    vf.upcycle(alien_tokenizer, trust_remote_code=True)
    assert canary.exists()
    canary.unlink()
    with pytest.raises(CheckpointError, match="trust_remote_code=True"):  # only for that one call
        vf.upcycle(alien_model)
    assert not canary.exists()


def test_no_loader_is_left_to_ask():
    """Each call of Transformers' Auto classes says whether code may run."""
    calls = []
    for path in SOURCES.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            function = getattr(node, "func", None)
            name = ast.unparse(function) if function is not None else ""
            if name.startswith("Auto") and name.endswith((".from_pretrained", ".from_config")):
                calls.append(path)
                told = {keyword.arg for keyword in node.keywords}
                assert "trust_remote_code" in told, f"{path}:{node.lineno}"
    assert calls
