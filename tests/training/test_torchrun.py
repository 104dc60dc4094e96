"""Two processes on the CPU through the real command: the same training, shared."""

import json
import shutil
from pathlib import Path

import pytest
import torch
import yaml
from safetensors.torch import load_file

from support.forked import VERB, Ended, forked
from support.launch import torchrun
from versatileffn.training.run import train


def in_forks(file: Path) -> Ended:
    return forked(VERB, "train", file, ranks=2)


def rng_state(path: Path) -> torch.Tensor:
    return torch.load(path, weights_only=False)["cpu"]


def read_log(run: Path) -> list[dict]:
    return [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]


@pytest.mark.parametrize("changes", [
    {},
    {"model__ffn": {"variant": "k-loop"}, "optim__consistency": {}},  # one cap, so no draws
    {"model__ffn": {"variant": "moe", "num_experts": 4, "router_bias_rate": 0.01,
                    "router_aux_loss_coef": 0.0}},
], ids=["dense", "consistency", "router biases"])  # fmt: skip
def test_two_processes_equal_one(make_config, tmp_path, changes):
    single = make_config(run__max_steps=12, run__output_dir=str(tmp_path / "single"),
                         run__eval_windows=16, run__per_device_train_batch_size=2,
                         **changes)  # fmt: skip
    alone = train(single)
    values = single.model_dump(mode="json")
    values["run"]["output_dir"] = str(tmp_path / "double")
    (tmp_path / "run.yaml").write_text(yaml.safe_dump(values))
    launch = torchrun if not changes else in_forks
    result = launch(tmp_path / "run.yaml")
    assert result.returncode == 0, result.stderr
    assert "2 process(es)" in result.stdout
    assert result.stdout.count("step 12/12  loss") == 1  # one process speaks
    together = tmp_path / "double"

    losses = [entry["loss"] for entry in read_log(together) if "loss" in entry]
    assert losses[-1] < losses[0] - 1
    for one, two in zip(read_log(alone), read_log(together), strict=True):
        assert one.keys() - {"eval_model_preparation_time"} <= two.keys()
        for key in {"loss", "eval_loss", "learning_rate", "grad_norm"} & one.keys():
            assert two[key] == pytest.approx(one[key], rel=1e-4), key
    ours = load_file(alone / "model" / "model.safetensors")
    theirs = load_file(together / "model" / "model.safetensors")
    for name in ours:
        torch.testing.assert_close(ours[name], theirs[name], rtol=1e-3, atol=1e-4)
    assert json.loads((together / "run.json").read_text())["processes"] == 2


def test_noise_resumes_in_each_process(make_config, tmp_path):
    """Random states are saved and restored for each process, and differ between them."""
    config = make_config(
        model__ffn={"variant": "versatile", "num_experts": 4}, run__per_device_train_batch_size=2
    )
    file = tmp_path / "run.yaml"
    file.write_text(yaml.safe_dump(config.model_dump(mode="json")))
    result = forked(VERB, "train", file, ranks=2)
    assert result.returncode == 0, result.stderr
    whole, parted = tmp_path / "run", tmp_path / "parted"
    states = [
        rng_state(whole / "checkpoints" / "checkpoint-4" / f"rng_state_{rank}.pth")
        for rank in (0, 1)
    ]
    assert not torch.equal(*states)

    shutil.copytree(whole, parted)
    (parted / "run.json").unlink()
    shutil.rmtree(parted / "model")
    shutil.rmtree(parted / "checkpoints" / "checkpoint-6")
    result = forked(VERB, "train", file, "--set", f"run.output_dir={parted}", ranks=2)
    assert result.returncode == 0, result.stderr
    assert "resumed after step 4" in result.stdout
    ours = load_file(whole / "model" / "model.safetensors")
    theirs = load_file(parted / "model" / "model.safetensors")
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)
