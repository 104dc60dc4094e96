"""The snippets of docs/using.md run, in their order, on a checkpoint of the user's."""

import json
import re
import shlex
from pathlib import Path

import pytest
import torch
from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM
from typer.main import get_command

from support.models import SHAPE
from versatileffn.cli import doctor
from versatileffn.cli.calibrate import keep
from versatileffn.cli.loop_colours import bracketed
from versatileffn.cli.main import app
from versatileffn.data.tokenizers import train_bpe

CURVE = [{"penalty": -1.0, "mean_loops": 3.9}, {"penalty": 1.0, "mean_loops": 1.1}]
FIGURES = Path(__file__).parents[1] / "docs" / "figures"
PAGE = (Path(__file__).parents[1] / "docs" / "using.md").read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def names(tmp_path_factory):
    """What the snippets define."""
    folder = tmp_path_factory.mktemp("using")
    torch.manual_seed(0)
    LlamaForCausalLM(LlamaConfig(**(SHAPE | {"vocab_size": 300}))).save_pretrained(folder / "dense")
    train_bpe(["a text of some words"] * 3, 300).save_pretrained(folder / "dense")
    found = {"__name__": "using"}
    for snippet in re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL):
        if "mean_loops" in snippet:
            keep(folder / "reused", CURVE)  # as `versatileffn calibrate` does, of a trained model
        snippet = snippet.replace('"path-or-hub-id"', repr(str(folder / "dense")))
        snippet = snippet.replace('"reused"', repr(str(folder / "reused")))
        exec(compile(snippet, "using.md", "exec"), found)
    assert found["out"] == str(folder / "reused")
    return found | {"folder": folder}


def test_the_tokenizer_lies_with_the_model(names):
    tokenizer = AutoTokenizer.from_pretrained(names["folder"] / "reused")
    assert tokenizer("some words").input_ids
    assert names["receipt"].logit_difference <= 1e-5


def test_the_plans_are_as_described(names):
    plan, shape = names["plan"], names["ids"].shape
    assert len(names["plans"]) == SHAPE["num_hidden_layers"]
    assert plan.loop_count.shape == plan.lam.shape == shape
    assert plan.experts.shape == plan.gates.shape == (*shape, 2)


def test_the_controller_decides(names):
    plans = names["model"](names["ids"], output_reuse_plans=True).reuse_plans
    assert len(plans) == SHAPE["num_hidden_layers"]
    for plan in plans:
        plan.check()
        assert plan.loop_count.max() <= 2


def test_the_commands_parse():
    commands = re.findall(r"^versatileffn (.*)$", PAGE, re.MULTILINE)
    verbs = [command.split()[0] for command in commands]
    assert verbs == ["calibrate", "generate", "generate", "chat", "doctor"]
    for command in commands:
        verb, *arguments = shlex.split(command, comments=True)
        get_command(app).commands[verb].make_context(verb, arguments)


def block(name):
    """What the page shows from a record, and the record."""
    shown = PAGE.split(f"<!-- from docs/figures/{name} -->\n```\n")[1].split("```")[0]
    return shown, json.loads((FIGURES / name).read_text(encoding="utf-8"))


def test_the_loops_are_a_run_s():
    shown, record = block("generate.json")
    assert shown.rstrip("\n") == "".join(map(bracketed, record["pieces"]))
    assert record["prompt"] in PAGE
    assert record["temperature"] == 0


def test_the_doctor_said_this(capsys):
    shown, record = block("doctor.json")
    doctor.print_executors(record["model"], record["executors"], record["alternatives"])
    doctor.print_numerics(record["numerics"])
    assert shown.strip("\n") == capsys.readouterr().out.strip("\n")
