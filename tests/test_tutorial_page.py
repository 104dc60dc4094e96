"""The tutorial runs from its first command to its last, on a model of the test's size."""

import json
import re
import shlex
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM
from typer.testing import CliRunner

from support.models import SHAPE
from versatileffn.cli.main import app
from versatileffn.data.tokenizers import train_bpe

PAGE = (Path(__file__).parents[1] / "docs" / "tutorial.md").read_text(encoding="utf-8")
SMALL = {
    "tokenize": ["texts"],
    "train": [
        f"--set=data.seq_len={32}",
        "--set=run.max_steps=2",
        "--set=run.tokens_per_batch=128",
    ],
}
"""What the test adds, so that it takes seconds."""


def blocks(kind):
    return re.findall(rf"```{kind}\n(.*?)```", PAGE, re.DOTALL)


@pytest.fixture(scope="module")
def done(tmp_path_factory):
    """The folder where it was all done, and what each command said."""
    pytest.importorskip("olmo_eval")
    folder = tmp_path_factory.mktemp("tutorial")
    torch.manual_seed(0)
    texts = [f"Once upon a time there were {n} loops and a text of some words." for n in range(400)]
    LlamaForCausalLM(LlamaConfig(**(SHAPE | {"vocab_size": 300}))).save_pretrained(folder / "dense")
    train_bpe(texts[:9], 300).save_pretrained(folder / "dense")
    (folder / "texts").mkdir()
    lines = "\n".join(json.dumps({"text": text}) for text in texts)
    (folder / "texts" / "0.jsonl").write_text(lines)
    (folder / "continue.yaml").write_text(blocks("yaml")[0])
    said = {}
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        for line in "".join(blocks("sh")).splitlines():
            program, *arguments = shlex.split(line)
            if program == "versatileffn":
                given = [re.sub("^50$", "2", argument) for argument in arguments]
                given += SMALL.get(given[0], [])
                result = CliRunner().invoke(app, given)
                assert result.exit_code == 0, (line, result.output, result.exception)
                said[line] = result.output
        for snippet in blocks("python"):
            exec(compile(snippet, "tutorial.md", "exec"), {})
    return folder, said


def test_the_first_five_commands_are_the_way_out():
    first = [line.split()[:2] for line in blocks("sh")[0].splitlines()]
    assert first == [
        ["hf", "download"], ["versatileffn", "upcycle"], ["versatileffn", "evaluate"],
        ["versatileffn", "export"], ["transformers", "serve"],
    ]  # fmt: skip


def test_the_exported_model_has_its_card_and_its_scores(done):
    folder, _ = done
    assert "## Evaluation" in (folder / "out" / "README.md").read_text(encoding="utf-8")
    dense = AutoModelForCausalLM.from_pretrained(folder / "dense")
    out = AutoModelForCausalLM.from_pretrained(folder / "out")
    ids = torch.arange(3, 30).unsqueeze(0)
    torch.testing.assert_close(out(ids).logits, dense(ids).logits)


def test_both_models_were_trained_and_one_can_be_looked_at(done):
    folder, said = done
    assert json.loads((folder / "run" / "run.json").read_text())["steps"] == 2
    kinds = {name: json.loads((folder / name / "model" / "config.json").read_text())["model_type"]
             for name in ("run", "run-dense")}  # fmt: skip
    assert kinds == {"run": "versatile_llama", "run-dense": "llama"}
    assert (folder / "seen" / "tokens.html").is_file()
    assert any("FLOPs" in text for text in said.values())
