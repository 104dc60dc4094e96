"""`versatileffn upcycle` as a user runs it: another process, its output and exit code."""

import dataclasses
import errno
import json
import os
import shutil
import subprocess
import sys
from collections import namedtuple

import pytest
import safetensors
import torch
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM, PreTrainedModel
from typer.testing import CliRunner

import versatileffn as vf
from support.forked import VERB, forked
from support.models import SHAPE, make_ids
from versatileffn.cli.main import app
from versatileffn.cli.upcycle import Target, upcycle_command
from versatileffn.errors import CheckpointError, ConfigError, ResourceError
from versatileffn.workspace import durable


def run(*arguments):
    return forked(VERB, "upcycle", *arguments)


@pytest.fixture(scope="module")
def dense_folder(tmp_path_factory):
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("checkpoints") / "dense"
    LlamaForCausalLM(LlamaConfig(**SHAPE)).save_pretrained(folder)
    return folder


def test_a_checkpoint_becomes_a_loadable_model_and_a_receipt(dense_folder, tmp_path):
    out = tmp_path / "reused"
    done = run(dense_folder, out, "--num-experts", 4, "--max-loops", 3)
    assert done.returncode == 0, done.stderr
    assert "logit difference  0 at most" in done.stdout
    receipt = json.loads((out / "receipt.json").read_text())
    assert receipt["logit_difference"] <= 1e-5
    assert receipt["ffn"]["num_experts"] == 4
    assert receipt["ffn"]["reuse_gains"] == "learned"
    assert set(receipt["files"]) == {p.name for p in out.iterdir()} - {"receipt.json"}
    dense, model = (AutoModelForCausalLM.from_pretrained(f) for f in (dense_folder, out))
    assert model.config.ffn().max_loops == 3
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


def test_every_knob_of_every_variant_is_an_option(dense_folder, tmp_path):
    """Options are made from the records, so that a new knob is one, too."""
    records = [
        vf.Versatile(
            4, 1, 5, 3, "average", "soft", "learned", 2, "linear", True, 1e-3, (1,), 0.5, 0.7, 0.1
        ),
        vf.Versatile(reuse_gains="fixed", loop_scale=0.5),
        vf.Versatile(router_aux_loss_coef=0.0, router_bias_rate=1e-3),
        vf.KLoop(3, "learned", 2, (0, 1), 0.5),
        vf.KLoop(3, "fixed", 2, (0, 1), loop_scale=0.5),
        vf.MoE(4, 1, 5, "fixed", 1e-3, (0,)),
        vf.MoE(4, 1, 5, "fixed", 0.0, (0,), router_bias_rate=1e-3),
        vf.Dense(),
    ]
    for kind in {type(config) for config in records}:
        of_kind = [config for config in records if type(config) is kind]
        for field in dataclasses.fields(kind):
            values = {getattr(config, field.name) for config in of_kind}
            assert values - {field.default} or field.name in ("controller", "reuse_gains")
    for number, config in enumerate(records):
        options = []
        for name, value in dataclasses.asdict(config).items():
            option = "--gains" if name == "reuse_gains" else f"--{name.replace('_', '-')}"
            for each in value if isinstance(value, tuple) else [value]:
                if each is not None and each is not False:
                    options += [option] if each is True else [option, str(each)]
        out = tmp_path / str(number)
        line = ["upcycle", str(dense_folder), str(out), "--to", config.variant, *options]
        result = CliRunner().invoke(app, line)
        assert result.exit_code == 0, result.output
        receipt = json.loads((out / "receipt.json").read_text())
        assert receipt["ffn"] == config.to_dict()


def test_options_without_effect_are_refused(dense_folder, tmp_path):
    done = run(dense_folder, tmp_path / "out", "--to", "dense", "--top-k", 3)
    assert done.returncode == 1
    assert "top_k is a knob of moe and versatile, not of dense" in done.stderr


def test_the_papers_form_is_asked_for_and_its_receipt_says_what_it_is(dense_folder, tmp_path):
    done = run(dense_folder, tmp_path / "out", "--gains", "fixed")
    assert done.returncode == 0
    assert "writes gibberish until it is trained; for an exact start use --gains learned" in (
        done.stdout
    )


@pytest.fixture
def out(dense_folder, tmp_path):
    """An output of this command, made in this process."""
    upcycle_command(str(dense_folder), tmp_path / "out")
    return tmp_path / "out"


def again(dense_folder, out):
    """What `--overwrite` with another variant makes of an output."""
    upcycle_command(str(dense_folder), out, to=Target.MOE, overwrite=True)


@pytest.mark.parametrize("place", ["thesis.tex", "notes/thesis.tex", "model-old.safetensors"])
def test_what_lies_beside_a_receipt_is_not_ours(dense_folder, out, place):
    (out / place).parent.mkdir(exist_ok=True)
    (out / place).write_text("years of work")
    with pytest.raises(ConfigError, match=f"holds {place}, which this command didn't write"):
        again(dense_folder, out)
    assert (out / place).read_text() == "years of work"
    assert json.loads((out / "receipt.json").read_text())["variant"] == "versatile"


def test_weights_trained_in_place_are_not_what_was_written(dense_folder, out):
    weights = out / "model.safetensors"
    trained = weights.read_bytes()[:-4] + b"abcd"
    weights.write_bytes(trained)
    with pytest.raises(ConfigError, match=r"model\.safetensors isn't what was written"):
        again(dense_folder, out)
    assert weights.read_bytes() == trained


def test_a_receipt_that_lists_no_files_protects_the_folder(dense_folder, out):
    """Nothing then tells what is this command's from what isn't."""
    receipt = json.loads((out / "receipt.json").read_text())
    receipt.pop("files")
    (out / "receipt.json").write_text(json.dumps(receipt))
    with pytest.raises(ConfigError, match="doesn't list its files"):
        again(dense_folder, out)
    assert json.loads((out / "receipt.json").read_text())["variant"] == "versatile"


def test_a_disk_without_room_is_seen_before_anything_is_written(
    dense_folder, tmp_path, monkeypatch
):
    Usage = namedtuple("Usage", "total used free")
    monkeypatch.setattr(durable.shutil, "disk_usage", lambda path: Usage(10**6, 10**6 - 5000, 5000))
    with pytest.raises(ResourceError, match=r"needs 0\.1 MiB and the disk has 0\.0 MiB free"):
        upcycle_command(str(dense_folder), tmp_path / "out")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "error",
    [
        OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)),
        safetensors.SafetensorError("I/O error: No space left on device (os error 28)"),
    ],
    ids=["python", "native"],
)
def test_a_disk_that_fills_up_loses_nothing(dense_folder, out, tmp_path, monkeypatch, error):
    def fill(self, folder, *arguments, **options):
        (folder / "model.safetensors").write_bytes(b"half")
        raise error

    monkeypatch.setattr(PreTrainedModel, "save_pretrained", fill)
    with pytest.raises(ResourceError, match="the disk is full"):
        again(dense_folder, out)
    assert json.loads((out / "receipt.json").read_text())["variant"] == "versatile"
    assert [p.name for p in tmp_path.iterdir()] == ["out"]


def test_a_real_disk_that_is_full(dense_folder, tmp_path):
    """A file system of 200 kB, whose free space is not believed beforehand."""
    (tmp_path / "small").mkdir()
    script = (
        "import sys; from versatileffn.workspace import durable; "
        "durable.free_bytes = lambda path: 10**9; "
        "from versatileffn.cli.main import main; main()"
    )
    (tmp_path / "run.py").write_text(script)
    # 26,848 weights of 4 bytes; MoE adds about as many.
    inner = (
        f"mount -t tmpfs -o size=150k none {tmp_path}/small && exec {sys.executable} "
        f"{tmp_path}/run.py upcycle {dense_folder} {tmp_path}/small/out --to moe"
    )
    probe = subprocess.run(
        ["unshare", "-rm", "mount", "-t", "tmpfs", "none", str(tmp_path / "small")], check=False
    ) if shutil.which("unshare") else None  # fmt: skip
    if probe is None or probe.returncode:
        pytest.skip("needs to mount a small file system")
    done = subprocess.run(
        ["unshare", "-rm", "sh", "-c", inner], capture_output=True, text=True, check=False
    )
    assert done.returncode == 1
    assert "the disk is full" in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1


@pytest.mark.parametrize("kind", ["loop", "bytes"])
def test_outputs_that_nothing_can_be_written_to(dense_folder, tmp_path, kind):
    place = tmp_path / ("loop" if kind == "loop" else "name-\udcff")
    if kind == "loop":
        place.symlink_to(place)
    with pytest.raises(ConfigError, match=r"in the way|can't be followed|isn't UTF-8"):
        upcycle_command(str(dense_folder), place)
    with pytest.raises(CheckpointError, match=r"leads nowhere|isn't UTF-8"):
        upcycle_command(str(place), tmp_path / "out")


def test_what_a_killed_run_left_is_cleaned_by_the_next(dense_folder, out, tmp_path):
    left = tmp_path / ".out.partial"
    (left / "new").mkdir(parents=True)
    (left / "new" / "model.safetensors").write_bytes(b"half")
    again(dense_folder, out)
    assert [p.name for p in tmp_path.iterdir()] == ["out"]
