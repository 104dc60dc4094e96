"""A full disk ends training in one line with both sizes, and what was saved is kept."""

import errno
import json

import pytest
import torch
from safetensors.torch import load_file

from versatileffn.errors import ResourceError
from versatileffn.training import trainer as trainer_module
from versatileffn.training.run import train
from versatileffn.workspace import durable


def names(run) -> list[str]:
    return sorted(path.name for path in (run / "checkpoints").iterdir())


def assert_continues_to_the_same(make_config, tmp_path):
    run = train(make_config())
    whole = train(make_config(run__output_dir=str(tmp_path / "whole")))
    ours, theirs = (load_file(path / "model" / "model.safetensors") for path in (run, whole))
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)


def test_too_little_room_is_seen_before_training(make_config, tmp_path, monkeypatch):
    monkeypatch.setattr(durable, "free_bytes", lambda path: 1000)
    with pytest.raises(ResourceError, match=r"checkpoint: .* needs 0\.3 MiB .* 0\.0 MiB free"):
        train(make_config())
    assert names(tmp_path / "run") == []


def test_too_little_room_is_seen_before_a_checkpoint(make_config, tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        saved = trainer_module.ReuseTrainer._save_checkpoint

        def save(self, *args):
            if self.state.global_step == 4:
                patch.setattr(durable, "free_bytes", lambda path: 1000)
            return saved(self, *args)

        patch.setattr(trainer_module.ReuseTrainer, "_save_checkpoint", save)
        with pytest.raises(
            ResourceError, match=r"needs .* free.* continues from checkpoint-2"
        ) as c:
            train(make_config())
        assert "\n" not in str(c.value)
    assert names(tmp_path / "run") == ["checkpoint-2"]
    assert_continues_to_the_same(make_config, tmp_path)


def full(*_, **__):
    raise OSError(errno.ENOSPC, "No space left on device")


def torch_is_full(*_, **__):
    raise RuntimeError("PytorchStreamWriter failed writing file data/0: file write failed")


@pytest.mark.parametrize(("what", "error"), [
    ("transformers.trainer.torch.save", torch_is_full),
    ("versatileffn.training.checkpoint_store.commit", full),
    ("versatileffn.training.checkpoint_store.copy_log", full),
])  # fmt: skip
def test_a_disk_that_fills_up_while_saving(make_config, tmp_path, monkeypatch, what, error):
    with monkeypatch.context() as patch:
        saved = trainer_module.ReuseTrainer._save_checkpoint
        free = durable.free_bytes

        def save(self, *args):
            if self.state.global_step == 4:
                room = iter([free(tmp_path)])  # there was room when it was asked for
                patch.setattr(durable, "free_bytes", lambda path: next(room, 0))
                patch.setattr(what, error)
            return saved(self, *args)

        patch.setattr(trainer_module.ReuseTrainer, "_save_checkpoint", save)
        with pytest.raises(ResourceError, match=r"disk is full.* from checkpoint-2") as c:
            train(make_config())
        assert "\n" not in str(c.value)
    assert names(tmp_path / "run") == ["checkpoint-2"]
    assert_continues_to_the_same(make_config, tmp_path)


def test_a_log_that_can_not_be_written_loses_nothing(make_config, tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr("versatileffn.training.log_file.open_own", full)
        with pytest.raises(ResourceError, match=r"log\.jsonl can't be written: the disk is full"):
            train(make_config())
    assert_continues_to_the_same(make_config, tmp_path)


def test_the_final_model_that_does_not_fit(make_config, tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr("versatileffn.training.record.publish", full)
        with pytest.raises(ResourceError, match="disk is full"):
            train(make_config())
    assert not (tmp_path / "run" / "run.json").exists()
    assert names(tmp_path / "run") == ["checkpoint-4", "checkpoint-6"]
    assert_continues_to_the_same(make_config, tmp_path)
    assert json.loads((tmp_path / "run" / "run.json").read_text())["steps"] == 6
