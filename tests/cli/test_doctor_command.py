"""`versatileffn doctor` tells what is here, and fails where the numbers are wrong."""

import json
import re
import shutil

import pytest
from transformers import LlamaConfig, LlamaForCausalLM
from typer.testing import CliRunner

from support.models import SHAPE
from versatileffn.analysis import selftest, surroundings
from versatileffn.cli.main import app
from versatileffn.execution import native, select

LOAD = native.load
BROKEN = """
from versatileffn.execution import select
right = select.run_packed
select.run_packed = lambda hidden, *rest: 1.01 * right(hidden, *rest)
"""


@pytest.fixture(autouse=True)
def brief(monkeypatch):
    monkeypatch.setattr(selftest, "PATIENCE", 0)
    monkeypatch.setitem(selftest.WORKS, "prefill", (16, False))
    monkeypatch.setitem(selftest.WORKS, "training", (16, True))
    monkeypatch.setattr(select, "run_packed", select.run_packed)  # put back, whoever changes it
    monkeypatch.setattr(native, "load", lambda: None)  # whatever the user's cache has


@pytest.fixture
def built():
    """What looks for the kernel, before and after it is built."""
    yield LOAD
    LOAD.cache_clear()


def doctor(*arguments):
    return CliRunner().invoke(app, list(map(str, arguments)))


def test_a_checkpoint_here(folder, tmp_path):
    done = doctor("doctor", folder, "--json", tmp_path / "d.json")
    assert done.exit_code == 0, done.output + repr(done.exception)
    record = json.loads((tmp_path / "d.json").read_text())
    assert record["device"] == "cpu"
    assert record["versions"]["torch"] in done.stdout
    used = {row["work"]: row["executor"] for row in record["executors"]}
    assert used == {"decode": "packed", "prefill": "packed", "training": "packed_training",
                    "max_loops=1": "once"}  # fmt: skip
    assert record["alternatives"] == {
        "torch.compile": None, "triton": "hidden states aren't on a CUDA device",
    }  # fmt: skip
    for text in ("2 × packed: a hard plan without gradients", "triton: no, hidden states", "free",
                 "threads of", "layer 1 of the model, float32", "output off by"):  # fmt: skip
        assert text in done.stdout
    assert [check["ok"] for check in record["numerics"]] == [True, True]
    assert [row["work"] for row in record["speeds"]] == ["decode", "prefill", "training"]


@pytest.mark.parametrize("with_model", [True, False], ids=["checkpoint", "no-checkpoint"])
def test_a_broken_executor_fails(folder, tmp_path, with_model):
    module = tmp_path / f"broken_executor_{with_model}.py"
    module.write_text(BROKEN)
    models = [folder] if with_model else []
    done = doctor("--import", module, "doctor", *models)
    assert done.exit_code == 1
    assert done.stdout.count("WRONG") == 1 + with_model
    (error,) = done.stderr.splitlines()
    assert error.startswith("error: a layer computes other numbers than it should")


def test_why_not_a_faster_one(make_folder):
    soft = make_folder(variant="versatile", loop_mix="soft")
    shown = doctor("doctor", soft).stdout
    assert "2 × masked: a soft plan mixes all loops: only loop_mix='hard' lets tokens stop" in shown
    assert "triton: no," in shown


def test_a_mixture_of_real_experts(make_folder):
    done = doctor("doctor", make_folder(variant="moe"))
    assert done.exit_code == 0
    assert "not timed: its experts are real ones" in done.stdout
    assert done.stdout.count("  ok ") == 2


def test_the_command_that_installs_what_is_missing(monkeypatch, make_folder):
    met = surroundings.is_met
    monkeypatch.setattr(surroundings, "is_met", lambda n: n.name != "gguf" and met(n))
    shown = doctor("doctor", make_folder(variant="moe")).stdout
    assert re.search(r"^extra gguf \(GGUF checkpoints\): pip install 'gguf>=[\d.]+'$", shown, re.M)


def test_a_dense_model_has_nothing_to_choose(tmp_path):
    LlamaForCausalLM(LlamaConfig(**SHAPE)).save_pretrained(tmp_path)
    done = doctor("doctor", tmp_path)
    assert "convert it with `versatileffn upcycle`, or leave it out" in str(done.exception)


@pytest.mark.skipif(shutil.which("cc") is None, reason="no C compiler")
def test_build_makes_the_kernel_and_holds_it_to_the_algorithms(monkeypatch, tmp_path, built):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(native, "load", built)
    done = doctor("doctor", "--build")
    assert done.exit_code == 0, done.output
    assert f"built {native.kernel_file()}" in done.stdout.replace("\n", "")
    assert "one loop, for decoding on the CPU with max_loops=1: built" in done.stdout
    assert "the compiled kernel weighs experts" in done.stdout
    assert done.stdout.count("D = 48, F = 96, float32") == 1  # which float64 doesn't take
