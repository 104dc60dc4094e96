"""Steps with numbers that aren't finite, or a jump, leave no trace but a line in the log."""

import json
import shutil
import zlib
from pathlib import Path

import pytest
import torch
import yaml
from safetensors.torch import load_file

from support.forked import forked
from versatileffn.data.packed import PackedDataset
from versatileffn.errors import DivergedError
from versatileffn.training.bad_steps import LEFT_OUT, BadSteps
from versatileffn.training.batches import BatchPlan, WindowBatches
from versatileffn.training.optim_config import BadStepsSection
from versatileffn.training.run import train
from versatileffn.training.trainer import ReuseTrainer

PLAN = BatchPlan(
    num_windows=625, windows_per_step=8, micro_batch=4, world_size=1, max_steps=6, seed=0
)
BIASED = {
    "variant": "versatile",
    "num_experts": 4,
    "top_k": 2,
    "router_bias_rate": 1e-2,
    "router_aux_loss_coef": 0.0,
}
# As a flipped bit does: a weight isn't a number while one step's micro-batches are computed.
BREAKING = """
import torch
from versatileffn.training.trainer import ReuseTrainer
original = ReuseTrainer.training_step

def training_step(self, model, inputs, *rest):
    weight = self.unwrapped.lm_head.weight
    broken = self.state.global_step + 1 in STEPS and self.args.process_index == RANK
    value = weight.detach()[0, 0].clone()
    with torch.no_grad():
        weight[0, 0] = float("nan") if broken else value
    loss = original(self, model, inputs, *rest)
    with torch.no_grad():
        weight[0, 0] = value
    return loss

ReuseTrainer.training_step = training_step
"""


@pytest.fixture
def broken_in(monkeypatch):
    """Breaks a weight during these steps."""

    def breaks(*steps: int) -> None:
        monkeypatch.setattr(ReuseTrainer, "training_step", ReuseTrainer.training_step)
        exec(BREAKING, {"STEPS": steps, "RANK": 0})

    return breaks


def entries(run: Path) -> list[dict]:
    return [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]


def every_step(make_config, **changes):
    return make_config(run__logging_steps=1, run__save_steps=1, run__save_total_limit=9, **changes)


def test_a_step_that_is_left_out_moves_nothing(make_config, broken_in, capsys):
    broken_in(4)
    run = train(every_step(make_config, model__ffn=BIASED, optim__bad_steps={"action": "skip"}))
    before, after = (run / "checkpoints" / f"checkpoint-{step}" for step in (3, 4))
    ours, theirs = (load_file(path / "model.safetensors") for path in (after, before))
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)
    biases = {name: each for name, each in theirs.items() if "bias" in name}
    assert any(each.any() for each in biases.values()), biases  # three moves of one size
    states = [torch.load(path / "optimizer.pt")["state"] for path in (after, before)]
    assert states[0].keys() == states[1].keys()
    for one, other in zip(states[0].values(), states[1].values(), strict=True):
        assert all(torch.equal(one[key], other[key]) for key in one)
    windows = WindowBatches(PLAN).step_windows(3)
    left_out = [entry for entry in entries(run) if LEFT_OUT in entry]
    assert left_out == [
        {"step": 4, LEFT_OUT: "the loss is nan", "step_loss": None, "step_grad_norm": None,
         "windows": windows}
    ]  # fmt: skip
    assert f"step 4 is left out: the loss is nan; batch of windows {windows[0]}, " in (
        capsys.readouterr().out
    )
    rates = {entry["step"]: entry["learning_rate"] for entry in entries(run) if "loss" in entry}
    assert rates.keys() == {1, 2, 3, 5, 6}
    assert rates[5] != pytest.approx(rates[3])  # the schedule went on
    assert json.loads((run / "run.json").read_text())["left_out"] == [4]
    assert all(
        torch.isfinite(each).all() for each in load_file(after / "model.safetensors").values()
    )


def test_nothing_is_told_of_what_a_left_out_step_decided_and_read(make_config, broken_in):
    broken_in(4)
    config = make_config(model__ffn=BIASED, optim__bad_steps={"action": "skip"})
    lines = {entry["step"]: entry for entry in entries(train(config)) if "tokens" in entry}
    assert lines[2].keys() == lines[6].keys()
    assert {"layer_1/mean_loops", "tokens_crc32", "grad_norm"} <= lines[6].keys() - lines[4].keys()
    assert not [key for key in lines[4] if "/" in key]
    assert lines[4]["loss"] > 0  # of step 3
    windows = PackedDataset(config.data.tokens, "train", seq_len=32)
    read = [windows[window]["input_ids"] for window in WindowBatches(PLAN).step_windows(5)]
    assert lines[6]["tokens_crc32"] == zlib.crc32(torch.stack(read).numpy().tobytes())


def test_the_logged_loss_is_of_the_steps_that_were_taken(make_config, tmp_path, broken_in):
    broken_in(3, 5, 6)
    rule = {"optim__bad_steps": {"action": "skip"}}
    singly = train(every_step(make_config, run__output_dir=str(tmp_path / "singly"), **rule))
    pairs = train(make_config(**rule))
    losses = [
        {entry["step"]: entry["loss"] for entry in entries(run) if "loss" in entry}
        for run in (singly, pairs)
    ]
    assert losses[0].keys() == {1, 2, 4}
    assert losses[1] == pytest.approx({2: (losses[0][1] + losses[0][2]) / 2, 4: losses[0][4]})


def test_going_on_equals_never_having_stopped(make_config, tmp_path, broken_in):
    broken_in(3, 5)
    rule = {"action": "skip", "spike": 2.0, "window": 8}
    settings = {
        "optim__bad_steps": rule, "run__save_steps": 4, "run__logging_steps": 4,
        "run__save_total_limit": 9,
    }  # fmt: skip
    run = train(make_config(**settings, run__max_steps=10))
    whole = train(make_config(**settings, run__max_steps=10, run__output_dir=str(tmp_path / "w")))
    (run / "run.json").unlink()
    shutil.rmtree(run / "model")
    for step in (8, 10):
        shutil.rmtree(run / "checkpoints" / f"checkpoint-{step}")
    train(make_config(**settings, run__max_steps=10))
    ours, theirs = (load_file(path / "model" / "model.safetensors") for path in (run, whole))
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)
    kept = [
        [(entry["step"], entry.get("loss"), entry.get("windows")) for entry in entries(path)]
        for path in (run, whole)
    ]
    assert kept[0] == kept[1]
    states = [
        json.loads((path / "checkpoints" / "checkpoint-8" / "loss_window.json").read_text())
        for path in (run, whole)
    ]
    assert states[0] == states[1]
    assert len(states[0]["bad_steps"]["losses"]) == 6


@pytest.mark.parametrize(("rule", "steps", "message", "at"), [
    ({"action": "stop"}, (3,), "the loss is nan in step 3, batch of windows", 2),
    ({"most": 2}, (3, 4, 5), "in step 5, .* after 2 steps in a row that were left out", 4),
])  # fmt: skip
def test_the_run_ends_before_the_weights_are_hurt(
    make_config, tmp_path, broken_in, rule, steps, message, at
):
    broken_in(*steps)
    with pytest.raises(DivergedError, match=f"diverged at step {at}: .*{message}"):
        train(every_step(make_config, optim__bad_steps=rule))
    saved = tmp_path / "run" / "checkpoints" / f"checkpoint-{at}" / "model.safetensors"
    assert all(tensor.isfinite().all() for tensor in load_file(saved).values())
    assert not (tmp_path / "run" / "model").exists()


def test_a_batch_of_noise_is_a_spike(make_config, tmp_path, monkeypatch):
    original = ReuseTrainer.training_step

    def training_step(self, model, inputs, *rest):
        if self.state.global_step == 18:
            chance = torch.Generator().manual_seed(0)
            noise = torch.randint(0, 64, inputs["input_ids"].shape, generator=chance)
            inputs = {**inputs, "input_ids": noise, "labels": noise}
        return original(self, model, inputs, *rest)

    monkeypatch.setattr(ReuseTrainer, "training_step", training_step)
    rule = {"spike": 4.0, "window": 8}
    run = train(make_config(run__max_steps=20, optim__bad_steps=rule))
    (left_out,) = (entry for entry in entries(run) if LEFT_OUT in entry)
    assert left_out["step"] == 19
    assert "more than" in left_out[LEFT_OUT]
    assert left_out["step_loss"] > 3


def test_what_a_spike_is(tmp_path):
    rule = BadStepsSection(spike=3.0, window=8, most=2)
    steps = BadSteps(rule, PLAN, tmp_path / "log.jsonl", speaks=False)
    assert steps.take(1, 100.0, 1.0)  # nothing to compare with yet
    for step in range(2, 9):
        assert steps.take(step, 2.0 + step / 10, 1.0)
    # Of 100, 2.2 … 2.8 the median is 2.55, and 0.2 the median of the deviations.
    assert not steps.take(9, 3.16, 1.0)
    assert steps.take(9, 3.14, 1.0)
    assert not steps.take(10, 2.0, float("inf"))


def test_all_processes_leave_the_step_out_that_one_of_them_breaks(make_config, tmp_path):
    config = make_config(
        run__per_device_train_batch_size=4,
        model__ffn={"variant": "versatile", "num_experts": 4},
        optim__bad_steps={"action": "skip"},
        run__output_dir=str(tmp_path / "run"),
    )
    file = tmp_path / "run.yaml"
    file.write_text(yaml.safe_dump(config.model_dump(mode="json")))
    script = f"STEPS, RANK = (3,), 1\n{BREAKING}\nfrom versatileffn.cli.main import main\nmain()\n"
    result = forked("-c", script, "train", file, ranks=2)
    assert result.returncode == 0, result.stderr
    assert result.stdout.count("step 3 is left out: the loss is nan") == 1
    record = json.loads((tmp_path / "run" / "run.json").read_text())
    assert record["left_out"] == [3]
    tensors = load_file(tmp_path / "run" / "model" / "model.safetensors")
    assert all(tensor.isfinite().all() for tensor in tensors.values())
