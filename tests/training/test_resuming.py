"""Going on: from what is whole, for longer, reported once, and never by running what is stored."""

import json
import logging
import os
import pickle
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from versatileffn.errors import CheckpointError, ConfigError
from versatileffn.training.run import train
from versatileffn.workspace.manifest import sha256

VERSATILE = {"variant": "versatile", "num_experts": 4, "max_loops": 3}


def weights(run: Path) -> dict[str, torch.Tensor]:
    return load_file(run / "model" / "model.safetensors")


def assert_same(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> None:
    assert one.keys() == other.keys()
    assert all(torch.equal(one[name], other[name]) for name in one)


def unfinish(run: Path) -> None:
    """Back to the moment at which the last checkpoint was there and the model wasn't."""
    (run / "run.json").unlink()
    shutil.rmtree(run / "model")


def reseal(checkpoint: Path, file: str) -> None:
    """As someone does who wants their file to be taken for ours."""
    contents = json.loads((checkpoint / "contents.json").read_text())
    contents["files"][file] = sha256(checkpoint / file)
    (checkpoint / "contents.json").write_text(json.dumps(contents))


@pytest.mark.parametrize(("file", "content"), [
    ("optimizer.pt", b"torn"), ("model.safetensors", None), ("contents.json", b"[]"), ("", None),
    ("", b"a file"),
])  # fmt: skip
def test_a_damaged_checkpoint_gives_way_to_the_one_before(make_config, capsys, file, content):
    run = train(make_config(model__ffn=VERSATILE))
    before, log = weights(run), (run / "log.jsonl").read_text()
    unfinish(run)
    newest = run / "checkpoints" / "checkpoint-6"
    if file:
        (newest / file).unlink()
        if content is not None:
            (newest / file).write_bytes(content)
    else:
        shutil.rmtree(newest)
        newest.mkdir() if content is None else newest.write_bytes(content)
    train(make_config(model__ffn=VERSATILE))
    out = capsys.readouterr().out
    assert out.count("checkpoint-6 can't be resumed from") == 1
    assert "resumed after step 4" in out
    assert_same(weights(run), before)
    losses = [
        [entry["loss"] for line in text.splitlines() if "loss" in (entry := json.loads(line))]
        for text in (log, (run / "log.jsonl").read_text())
    ]
    assert losses[0] == losses[1]


def test_an_old_checkpoint_that_a_crash_left_is_pruned(make_config):
    """Killed between naming the last checkpoint and letting the oldest one go."""
    run = train(make_config(run__save_total_limit=3))
    unfinish(run)
    train(make_config(run__save_total_limit=2))
    names = sorted(path.name for path in (run / "checkpoints").iterdir())
    assert names == ["checkpoint-4", "checkpoint-6"]


def test_a_checkpoint_of_another_run_of_the_same_settings_does_not_serve(
    make_config, tmp_path, capsys
):
    mine = train(make_config(run__output_dir=str(tmp_path / "mine")))
    other = train(make_config(run__output_dir=str(tmp_path / "other")))
    before = weights(mine)
    unfinish(mine)
    shutil.rmtree(mine / "checkpoints" / "checkpoint-6")
    shutil.copytree(other / "checkpoints" / "checkpoint-6", mine / "checkpoints" / "checkpoint-6")
    shutil.copytree(mine / "checkpoints" / "checkpoint-4", mine / "checkpoints" / "checkpoint-5")
    train(make_config(run__output_dir=str(mine)))
    out = capsys.readouterr().out
    assert "checkpoint-6 can't be resumed from (it is another run's)" in out
    assert "checkpoint-5 can't be resumed from (it is of step 4)" in out
    assert_same(weights(mine), before)


@pytest.mark.parametrize("damage", [
    lambda log: log.unlink(), lambda log: log.write_text(log.read_text()[:100]),
    lambda log: log.write_text(log.read_text().replace('"loss": ', '"loss": 1')),
], ids=["lost", "truncated", "changed"])  # fmt: skip
def test_the_log_comes_back_line_by_line(make_config, capsys, damage):
    run = train(make_config(model__ffn=VERSATILE))
    before = (run / "log.jsonl").read_text()
    unfinish(run)
    damage(run / "log.jsonl")
    train(make_config(model__ffn=VERSATILE))
    assert "log.jsonl had lost lines: restored from" in capsys.readouterr().out
    assert (run / "log.jsonl").read_text() == before


class Payload:
    def __reduce__(self):
        return os.system, ("touch /tmp/versatileffn-was-run",)


@pytest.mark.parametrize("file", ["optimizer.pt", "scheduler.pt", "rng_state.pth"])
@pytest.mark.parametrize("protocol", ["torch", "plain"])
def test_a_pickle_is_refused_as_one(make_config, file, protocol):
    run = train(make_config())
    unfinish(run)
    newest = run / "checkpoints" / "checkpoint-4"
    shutil.rmtree(run / "checkpoints" / "checkpoint-6")
    if protocol == "torch":
        torch.save(Payload(), newest / file)
    else:
        (newest / file).write_bytes(pickle.dumps(Payload()))
    reseal(newest, file)
    with pytest.raises(CheckpointError, match=r"no code was run: delete .*checkpoint-4") as caught:
        train(make_config())
    assert "\n" not in str(caught.value)
    assert not Path("/tmp/versatileffn-was-run").exists()


def test_weights_of_another_model_are_refused(make_config):
    run = train(make_config())
    unfinish(run)
    shutil.rmtree(run / "checkpoints" / "checkpoint-6")
    checkpoint = run / "checkpoints" / "checkpoint-4"
    tensors = load_file(checkpoint / "model.safetensors")
    tensors["model.other.weight"] = tensors.pop("model.norm.weight")
    save_file(tensors, checkpoint / "model.safetensors")
    reseal(checkpoint, "model.safetensors")
    with pytest.raises(CheckpointError, match=r"isn't of this model \(model.norm.weight"):
        train(make_config())


def test_tied_weights_resume_without_an_alarm(make_config, tmp_path, caplog):
    architecture = {
        "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1,
        "num_attention_heads": 2, "tie_word_embeddings": True,
    }  # fmt: skip
    config = make_config(model__architecture=architecture)
    run = train(config)
    before = weights(run)
    assert "lm_head.weight" not in before
    unfinish(run)
    shutil.rmtree(run / "checkpoints" / "checkpoint-6")
    logging.getLogger("transformers").propagate = True
    with caplog.at_level(logging.WARNING):
        train(config)
    assert "missing keys" not in caplog.text
    assert_same(weights(run), before)


def test_tensorboard_gets_each_step_once(make_config):
    config = make_config(run__report_to=["tensorboard"])
    run = train(config)
    for _ in range(2):
        unfinish(run)
        shutil.rmtree(run / "checkpoints" / "checkpoint-6")
        train(config)
    events = EventAccumulator(str(run / "tensorboard"))
    events.Reload()
    tags = events.Tags()
    for tag, steps in (("train/loss", [2, 4, 6]), ("eval/loss", [0, 3, 6])):
        assert [event.step for event in events.Scalars(tag)] == steps
    assert [len(events.Tensors(tag)) for tag in tags["tensors"]] == [1, 1]  # args, model config


@pytest.mark.parametrize("length", ["steps", "epochs"])
def test_a_finished_run_made_longer_equals_one_planned_so(make_config, tmp_path, length):
    """Learning rate and τ stay where they ended, and nothing depends on when it was decided."""
    epochs = 6 * 8 / 625  # the fixture has 625 windows, a step takes 8

    def config(steps: int, schedule: int | None, output: str):
        size = {"run__max_steps": steps} if length == "steps" else {
            "run__max_steps": None, "run__num_train_epochs": epochs * steps / 6 + 1e-9,
        }  # fmt: skip
        return make_config(
            model__ffn=VERSATILE, run__schedule_steps=schedule,
            run__output_dir=str(tmp_path / output), **size,
        )  # fmt: skip

    run = train(config(6, None, "run"))
    first = weights(run)
    with pytest.raises(ConfigError, match=r"add run\.schedule_steps=6"):
        train(config(10, None, "run"))
    train(config(10, 6, "run"))
    planned = train(config(10, 6, "planned"))
    assert_same(weights(run), weights(planned))
    assert not torch.equal(weights(run)["lm_head.weight"], first["lm_head.weight"])
    entries = [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]
    later = [entry for entry in entries if entry["step"] > 6 and "loss" in entry]
    assert [entry["learning_rate"] for entry in later] == [pytest.approx(1e-3)] * 2  # a tenth
    assert [entry["tau"] for entry in later] == [0.1, 0.1]
    record = json.loads((run / "run.json").read_text())
    assert (record["steps"], record["schedule_steps"], record["planned_before"]) == (10, 6, [6])
    with pytest.raises(ConfigError, match="longer, not shorter"):
        train(config(6, None, "run"))


def test_a_finished_run_without_checkpoints_is_not_begun_anew(make_config):
    run = train(make_config())
    before = weights(run)
    shutil.rmtree(run / "checkpoints")
    with pytest.raises(CheckpointError, match="no checkpoint to go on from after step 6"):
        train(make_config(run__max_steps=10, run__schedule_steps=6))
    assert_same(weights(run), before)


def test_the_record_lists_the_models_files(make_config):
    run = train(make_config())
    files = json.loads((run / "run.json").read_text())["files"]
    on_disk = {path.relative_to(run).as_posix() for path in (run / "model").rglob("*")}
    assert files.keys() == on_disk
    assert all(sha256(run / name) == digest for name, digest in files.items())
