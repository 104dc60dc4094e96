"""What the README and its pages say is what the code does and what the committed results hold."""

import json
import re
import shlex
import tomllib
from pathlib import Path

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM
from typer.main import get_command

from support.models import SHAPE
from versatileffn.cli.main import app
from versatileffn.data.tokenizers import train_bpe
from versatileffn.reproduce.report import short_table

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
COMMANDS, LANGUAGE, ROOMS = (
    (ROOT / "docs" / f"{page}.md").read_text(encoding="utf-8")
    for page in ("commands", "language", "rooms")
)
RESULTS = ROOT / "results" / "tiny-3-seeds" / "results.json"


def commands() -> list[str]:
    """Every `versatileffn VERB ...` line of the shell blocks of the README and of its page."""
    blocks = re.findall(r"```sh\n(.*?)```", README + COMMANDS, re.DOTALL)
    lines = [line.split("  #")[0].strip() for block in blocks for line in block.splitlines()]
    pattern = re.compile(r"(?:^|/|-m )versatileffn(?:\.cli\.main)? (?=[a-z])")
    return [line[match.end() :] for line in lines if (match := pattern.search(line))]


def test_every_verb_is_shown():
    assert {command.split()[0] for command in commands()} == {
        "upcycle",
        "tokenize",
        "train",
        "plan",
        "reproduce",
        "evaluate",
        "perplexity",
        "flops",
        "bench",
        "verify",
        "generate",
        "chat",
        "doctor",
        "export",
        "calibrate",
        "analyze",
    }


@pytest.mark.parametrize("command", commands())
def test_every_command_parses(command):
    """Verb, options and their types exist; nothing is run."""
    verb, *arguments = shlex.split(command)
    parser = get_command(app).commands[verb]
    parser.make_context(verb, arguments)


def test_the_python_block_runs(tmp_path, capsys):
    torch.manual_seed(0)
    dense = LlamaForCausalLM(LlamaConfig(**(SHAPE | {"vocab_size": 300})))
    dense.save_pretrained(tmp_path / "dense")
    train_bpe(["a text of some words"] * 3, 300).save_pretrained(tmp_path / "dense")
    block = re.search(r"```python\n(.*?)```", README, re.DOTALL)[1]
    for name, folder in (("path-or-hub-id", "dense"), ("reused", "out")):
        assert f'"{name}"' in block
        block = block.replace(f'"{name}"', repr(str(tmp_path / folder)))
    exec(compile(block, "README.md", "exec"), {})
    assert "Once upon a time" in capsys.readouterr().out


def test_every_file_the_readme_links_to_exists():
    for target in re.findall(r"\]\((?!https?:)([^)#]+)", README):
        assert (ROOT / target).exists(), target


def tree() -> list[str]:
    """Every file and room of the tree, relative to the package."""
    text = ROOMS.split("src/versatileffn/\n")[1].split("```")[0]
    listed, room = [], ""
    for indent, names in re.findall(r"^  ( *)((?:[a-z_]+(?:\.py|/) ?)+)", text, re.MULTILINE):
        for name in names.split():
            if not indent:
                room = name if name.endswith("/") else ""
            listed.append(room + name if indent else name)
    return listed


def test_every_file_of_the_tree_exists():
    assert len(tree()) > 40
    for name in tree():
        assert (ROOT / "src" / "versatileffn" / name).exists(), name


def test_the_tree_stands_in_import_order():
    contracts = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["importlinter"]
    layers = contracts["contracts"][0]["layers"]
    heights = {
        module.strip().removeprefix("versatileffn."): height
        for height, layer in enumerate(reversed(layers))
        for module in layer.split("|")
    }
    stands = []
    for name in tree():
        module = name.removesuffix(".py").rstrip("/").replace("/", ".")
        within = [h for m, h in heights.items() if m == module or m.startswith(f"{module}.")]
        if within:
            stands.append((min(within), name))
    assert len(stands) > 30
    assert stands == sorted(stands, key=lambda each: each[0])


def test_the_table_is_the_committed_run():
    results = json.loads(RESULTS.read_text())
    assert short_table(results) in LANGUAGE
    assert results["command"] in LANGUAGE
    assert len(results["seeds"]) >= 3
    assert any(record["arm"] == "dense" for record in results["summary"])
