"""`versatileffn upcycle` as a user runs it: another process, its output and exit code."""

import json
import shutil
import subprocess
import sys

import pytest
import torch
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM

from support.models import SHAPE, make_ids


def run(*arguments):
    command = [sys.executable, "-m", "versatileffn.cli.main", "upcycle", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)


@pytest.fixture(scope="module")
def dense_folder(tmp_path_factory):
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("checkpoints") / "dense"
    LlamaForCausalLM(LlamaConfig(**SHAPE)).save_pretrained(folder)
    return folder


def test_a_checkpoint_becomes_a_loadable_model_and_a_receipt(dense_folder, tmp_path):
    out = tmp_path / "reused"
    done = run(dense_folder, out, "--gains", "learned", "--num-experts", 4, "--max-loops", 3)
    assert done.returncode == 0, done.stderr
    assert "logit difference  0 at most" in done.stdout
    receipt = json.loads((out / "receipt.json").read_text())
    assert receipt["logit_difference"] <= 1e-5
    assert receipt["ffn"]["num_experts"] == 4
    dense, model = (AutoModelForCausalLM.from_pretrained(f) for f in (dense_folder, out))
    assert model.config.max_loops == 3
    ids = make_ids(2, 9)
    with torch.no_grad():
        torch.testing.assert_close(model(ids).logits, dense(ids).logits, rtol=0, atol=1e-5)


def test_an_occupied_folder_is_left_alone(dense_folder, tmp_path):
    (tmp_path / "thesis.tex").write_text("years of work")
    done = run(dense_folder, tmp_path)
    assert done.returncode == 1
    assert done.stderr.startswith("error: ")
    assert "already exists" in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1
    assert [p.name for p in tmp_path.iterdir()] == ["thesis.tex"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--d-expert", 9], "exceeds d_hidden=64"),
        (["--top-k", 9], "top_k=9 exceeds num_experts=8"),
        (["--max-loops", 0], "max_loops=0 must be"),
    ],
    ids=str,
)
def test_bad_settings_leave_nothing_behind(dense_folder, tmp_path, arguments, message):
    done = run(dense_folder, tmp_path / "out", *arguments)
    assert done.returncode == 1
    assert message in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1
    assert not list(tmp_path.iterdir())


def test_a_source_that_is_no_checkpoint(tmp_path):
    done = run(tmp_path, tmp_path / "out")
    assert done.returncode == 1
    assert done.stderr.startswith(f"error: {tmp_path} is no readable checkpoint")
    assert "Traceback" not in done.stderr


def test_an_older_output_is_replaced_only_on_request(dense_folder, tmp_path):
    out = tmp_path / "reused"
    assert run(dense_folder, out).returncode == 0
    assert "pass --overwrite" in run(dense_folder, out, "--to", "moe").stderr
    assert json.loads((out / "receipt.json").read_text())["variant"] == "versatile"
    assert run(dense_folder, out, "--to", "moe", "--overwrite").returncode == 0
    assert json.loads((out / "receipt.json").read_text())["variant"] == "moe"
    assert [p.name for p in tmp_path.iterdir()] == ["reused"]


def test_overwrite_never_takes_the_source_or_a_stranger(dense_folder, tmp_path):
    project = tmp_path / "project"
    shutil.copytree(dense_folder, project / "checkpoint")
    (project / "thesis.tex").write_text("years of work")
    for out in (project, project / "checkpoint"):
        done = run(project / "checkpoint", out, "--overwrite")
        assert done.returncode == 1, out
        assert "never replaced" in done.stderr
    assert (project / "thesis.tex").read_text() == "years of work"
    assert (project / "checkpoint" / "model.safetensors").exists()


def test_options_without_effect_are_refused(dense_folder, tmp_path):
    done = run(dense_folder, tmp_path / "out", "--to", "dense", "--top-k", 3)
    assert done.returncode == 1
    assert "top_k has no effect on a dense model" in done.stderr
