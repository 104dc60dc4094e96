"""The run as a whole: what a folder holds, what changes nothing, what is refused."""

import json
import math
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer, TrainerCallback

from versatileffn.data.packed import PackedDataset
from versatileffn.errors import ConfigError, DataError
from versatileffn.evaluation.held_out import held_out_loss
from versatileffn.evaluation.loops import layer_use
from versatileffn.training import arguments
from versatileffn.training import run as run_module
from versatileffn.training.run import train
from versatileffn.training.schedules import tau_at
from versatileffn.training.telemetry import Telemetry

TINY_LAYERS = 2
VERSATILE = {"variant": "versatile", "num_experts": 4, "max_loops": 3}


def read_log(run: Path) -> list[dict]:
    return [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]


def weights(run: Path) -> dict[str, torch.Tensor]:
    return load_file(run / "model" / "model.safetensors")


def assert_same_weights(one: Path, other: Path) -> None:
    ours, theirs = weights(one), weights(other)
    assert ours.keys() == theirs.keys()
    for name in ours:
        assert torch.equal(ours[name], theirs[name]), name


def test_dense_run_learns_and_leaves_a_complete_folder(make_config):
    config = make_config(run__max_steps=30, run__logging_steps=5, run__save_steps=10,
                         run__eval_steps=10, run__report_to=["tensorboard"])  # fmt: skip
    run = train(config)
    log = read_log(run)
    losses = [entry["loss"] for entry in log if "loss" in entry]
    held_out = [entry for entry in log if "eval_loss" in entry]
    assert losses[0] > 3.5  # about ln 64
    assert losses[-1] < 2.5
    assert [entry["step"] for entry in held_out] == [0, 10, 20, 30]
    assert held_out[-1]["eval_loss"] < held_out[0]["eval_loss"]
    bits = held_out[-1]["eval_loss"] / math.log(2)
    assert held_out[-1]["eval_bits_per_byte"] == pytest.approx(bits / 3, rel=0.1)  # ~3 bytes each

    model = AutoModelForCausalLM.from_pretrained(run / "model")
    assert type(model).__name__ == "LlamaForCausalLM"
    assert AutoTokenizer.from_pretrained(run / "model").eos_token == "<|end|>"
    summary = json.loads((run / "run.json").read_text())
    assert summary["tokens_seen"] == 30 * 256
    assert summary["tokens_per_second"] > 0
    assert summary["eval_loss"] == held_out[-1]["eval_loss"]
    assert summary["eval_tokens"] == 10 * 31
    assert summary["parameters"] == model.num_parameters()
    assert sorted(p.name for p in (run / "checkpoints").iterdir()) == [
        "checkpoint-20",
        "checkpoint-30",
    ]
    assert list((run / "tensorboard").iterdir())
    assert [p.name for p in run.glob(".*")] == [".lock"]
    assert not list((run / "checkpoints").glob(".*"))


def test_versatile_run_reports_every_layer(make_config):
    run = train(make_config(model__ffn=VERSATILE | {"reuse_gains": "learned"}))
    entry = next(e for e in read_log(run) if "loss" in e)
    assert entry["tau"] == pytest.approx(5 * (0.1 / 5) ** (1 / (0.96 * 6)))
    assert not any(key.startswith("layer_0") for key in entry)  # people count layers from 1
    for layer in ("layer_1", "layer_2"):
        shares = [entry[f"{layer}/loop_share_{count}"] for count in (1, 2, 3)]
        assert sum(shares) == pytest.approx(1)
        mean = sum(count * share for count, share in enumerate(shares, start=1))
        assert entry[f"{layer}/mean_loops"] == pytest.approx(mean)
        assert entry[f"{layer}/lambda"] == pytest.approx(1 - mean / 3)
        assert sum(entry[f"{layer}/expert_load_{i}"] for i in range(4)) == pytest.approx(1)
        assert {f"{layer}/width_gain", f"{layer}/loop_gain_2", f"{layer}/loop_gain_3"} <= set(entry)
    assert entry["aux_loss"] > 0.9
    config = json.loads((run / "model" / "config.json").read_text())
    assert config["tau"] == 0.1


def test_a_controller_without_a_temperature_is_reported_all_the_same(make_config):
    ffn = {"controller": "token-choice", "fusion": "depth", "max_loops": 3}
    run = train(make_config(model__ffn=ffn | {"reuse_gains": "learned"}))
    steps = [entry for entry in read_log(run) if "loss" in entry]
    assert steps[-1]["loss"] < steps[0]["loss"]
    assert "tau" not in steps[0]
    for layer in ("layer_1", "layer_2"):
        assert 1 <= steps[0][f"{layer}/mean_loops"] <= 3
        assert 0 < steps[0][f"{layer}/lambda"] < 1
        assert f"{layer}/expert_load_0" not in steps[0]
    assert steps[0]["aux_loss"] > 0.9


def test_telemetry_averages_the_micro_batches_of_a_step(make_config):
    """Against the plans of all the tokens at once."""
    model = AutoModelForCausalLM.from_pretrained(train(make_config(model__ffn=VERSATILE)) / "model")
    ids = torch.randint(0, 64, (4, 16))
    telemetry = Telemetry(model)
    with torch.no_grad():
        for part in ids.split(2):
            telemetry.add(model(part, **telemetry.request(), labels=part), part)
    found = telemetry.take()
    for layer, use in enumerate(layer_use(model, [ids]), start=1):
        assert found[f"layer_{layer}/mean_loops"] == pytest.approx(use.mean_loops)
        assert found[f"layer_{layer}/lambda"] == pytest.approx(use.mean_lam)
        for expert, load in enumerate(use.expert_load):
            assert found[f"layer_{layer}/expert_load_{expert}"] == pytest.approx(load)
    assert telemetry.take() == {}


@pytest.mark.parametrize(("settings", "expected"), [
    ({"model__ffn": VERSATILE}, ["packed", "packed_training"]),
    ({"model__ffn": VERSATILE, "run__execution": "recompute"}, ["packed", "recomputed"]),
    ({"model__ffn": VERSATILE, "run__execution": "masked"}, ["masked"]),
    ({"model__ffn": VERSATILE | {"loop_mix": "soft"}}, ["masked"]),
    ({"model__ffn": {"variant": "k-loop"}}, ["masked"]),
    ({}, []),
], ids=str)  # fmt: skip
def test_the_record_says_how_plans_were_carried_out_and_why(
    make_config, tmp_path, settings, expected
):
    """Training, and the evaluations beside it."""
    train(make_config(model__ffn={"variant": "dense"}))  # of another run nothing is told
    run = train(make_config(**settings, run__output_dir=str(tmp_path / "second")))
    used = json.loads((run / "run.json").read_text())["execution"]
    assert [each["executor"] for each in used] == expected
    assert all(each["reason"] for each in used)


@pytest.mark.parametrize("ffn", [
    {"variant": "moe", "num_experts": 4},
    {"variant": "k-loop", "num_loops": 2, "reuse_gains": "learned"},
    {"variant": "dense"},
])  # fmt: skip
def test_each_baseline_trains(make_config, ffn):
    run = train(make_config(model__ffn=ffn))
    steps = [entry for entry in read_log(run) if "loss" in entry]
    assert steps[-1]["loss"] < steps[0]["loss"]
    assert "tau" not in steps[0]
    if ffn["variant"] == "moe":
        assert sum(steps[0][f"layer_2/expert_load_{i}"] for i in range(4)) == pytest.approx(1)
    if ffn["variant"] == "k-loop":
        assert "layer_1/loop_gain_2" in steps[0]


def test_logging_and_evaluation_change_nothing(make_config, tmp_path):
    often = make_config(model__ffn=VERSATILE, run__logging_steps=1, run__eval_steps=1,
                        run__output_dir=str(tmp_path / "often"))  # fmt: skip
    rarely = make_config(model__ffn=VERSATILE, run__logging_steps=6, run__eval_steps=6,
                         run__save_steps=6, run__output_dir=str(tmp_path / "rarely"))  # fmt: skip
    assert_same_weights(train(often), train(rarely))


@pytest.mark.parametrize("ffn", [None, VERSATILE])
def test_held_out_loss_is_the_one_that_evaluation_measures(make_config, tokens, ffn):
    config = make_config(model__ffn=ffn)
    summary = json.loads((train(config) / "run.json").read_text())
    model = AutoModelForCausalLM.from_pretrained(Path(config.run.output_dir) / "model")
    measured = held_out_loss(model, PackedDataset(tokens, "val", 32), windows=range(10))
    assert summary["eval_loss"] == measured.nats_per_token
    assert summary["eval_bits_per_byte"] == measured.bits_per_byte
    assert summary["eval_tokens"] == measured.tokens


def test_seed_changes_the_weights(make_config, tmp_path):
    one = train(make_config(run__output_dir=str(tmp_path / "one")))
    other = train(make_config(run__output_dir=str(tmp_path / "other"), run__seed=1))
    assert not torch.equal(weights(one)["lm_head.weight"], weights(other)["lm_head.weight"])


def test_the_micro_batch_changes_only_rounding(make_config, tmp_path):
    logs = []
    for size in (8, 2):
        output = str(tmp_path / str(size))
        run = train(make_config(run__per_device_train_batch_size=size, run__output_dir=output))
        logs.append(read_log(run))
    for one, other in zip(*logs, strict=True):
        for key in ("loss", "eval_loss"):
            assert one.get(key) == pytest.approx(other.get(key), abs=1e-5)


def test_bf16_and_gradient_checkpointing_train(make_config):
    run = train(make_config(model__ffn=VERSATILE, run__bf16=True, run__gradient_checkpointing=True))
    losses = [entry["loss"] for entry in read_log(run) if "loss" in entry]
    assert losses[-1] < losses[0]
    assert all(tensor.dtype == torch.float32 for tensor in weights(run).values())


def test_continuing_upcycles_a_dense_checkpoint(make_config, tmp_path):
    base = train(make_config(run__max_steps=12))
    base_loss = json.loads((base / "run.json").read_text())["eval_loss"]
    config = make_config(
        model__architecture=None,
        model__init_from=str(base / "model"),
        model__ffn=VERSATILE | {"reuse_gains": "learned"},
        run__output_dir=str(tmp_path / "continued"),
        run__max_steps=12,
    )
    log = read_log(train(config))
    first = next(entry["loss"] for entry in log if "loss" in entry)
    assert first < base_loss + 0.3  # exact conversion: no shock
    assert [e["eval_loss"] for e in log if "eval_loss" in e][-1] < base_loss


def test_a_finished_run_is_left_alone(make_config, capsys):
    run = train(make_config())
    before = {p: p.stat().st_mtime_ns for p in run.rglob("*")}
    train(make_config())
    assert "finished already" in capsys.readouterr().out
    assert before == {p: p.stat().st_mtime_ns for p in run.rglob("*")}


def test_a_folder_of_another_run_is_refused(make_config):
    train(make_config())
    with pytest.raises(ConfigError, match=r"optim\.learning_rate is 0\.02, was 0\.01"):
        train(make_config(optim__learning_rate=0.02))


def test_a_foreign_folder_is_refused_and_kept(make_config, tmp_path):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "thesis.tex").write_text("precious")
    with pytest.raises(ConfigError, match="holds no training run"):
        train(make_config())
    assert (tmp_path / "run" / "thesis.tex").read_text() == "precious"
    assert len(list((tmp_path / "run").iterdir())) == 1


def test_bad_data_is_named(make_config, tmp_path):
    with pytest.raises(DataError, match="fewer than one sequence"):
        train(make_config(data__seq_len=4096, run__tokens_per_batch=4 * 4096))
    with pytest.raises(DataError, match="no such token folder"):
        train(make_config(data__tokens=str(tmp_path / "nowhere")))
    assert not (tmp_path / "run").exists()


def test_a_batch_that_does_not_divide_is_named(make_config):
    with pytest.raises(ConfigError, match="8 windows of 32 tokens, not a multiple of 1 processes"):
        train(make_config(run__per_device_train_batch_size=3))


@pytest.mark.parametrize("damage", ["record emptied", "model deleted"])
def test_a_finished_run_that_lost_something_is_finished_again(make_config, damage):
    run = train(make_config())
    before = weights(run)
    if damage == "record emptied":
        (run / "run.json").write_text("")
    else:
        shutil.rmtree(run / "model")
    train(make_config())
    assert json.loads((run / "run.json").read_text())["steps"] == 6
    assert all(torch.equal(tensor, before[name]) for name, tensor in weights(run).items())


def test_a_model_without_its_weights_is_named(make_config):
    run = train(make_config())
    (run / "model" / "model.safetensors").unlink()
    with pytest.raises(ConfigError, match="lacks its weights"):
        train(make_config())


@pytest.mark.parametrize("name", ["a" * 300, "file/x", "link", "file"])
def test_a_run_folder_that_can_not_be_is_one_line(make_config, tmp_path, name):
    (tmp_path / "file").write_text("")
    (tmp_path / "link").symlink_to(tmp_path / "nowhere")
    with pytest.raises(ConfigError, match=r"can't be written|is a file"):
        train(make_config(run__output_dir=str(tmp_path / name)))


def test_another_tokenizer_in_the_token_folder_is_named(make_config, tokens, tmp_path):
    shutil.copytree(tokens, tmp_path / "t")
    path = tmp_path / "t" / "tokenizer" / "tokenizer.json"
    for content in ("garbage", path.read_text().replace("w5", "w_5")):
        path.write_text(content)
        with pytest.raises(DataError, match="tokenizer"):
            train(make_config(data__tokens=str(tmp_path / "t")))
    path.unlink()
    with pytest.raises(DataError, match=r"no tokenizer\.json"):
        train(make_config(data__tokens=str(tmp_path / "t")))
    assert not (tmp_path / "run").exists()


def test_a_tracker_that_is_not_installed_is_named(make_config, tmp_path, monkeypatch):
    monkeypatch.setattr(arguments, "get_available_reporting_integrations", list)
    with pytest.raises(ConfigError, match="wandb isn't installed"):
        train(make_config(run__report_to=["wandb"]))
    assert not (tmp_path / "run").exists()


def test_every_layer_trains_with_the_temperature_of_its_step(make_config):
    """The whole schedule reaches all layers, not only the config or the first layer."""
    seen = []

    class Watch(TrainerCallback):
        def on_step_end(self, args, state, control, model=None, **kwargs):
            seen.append([layer.controller.tau for layer in model.model.layers])

    original = run_module._add_callbacks
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            run_module, "_add_callbacks", lambda t, *a: (original(t, *a), t.add_callback(Watch()))
        )
        train(make_config(model__ffn=VERSATILE))
    expected = [tau_at(step, 6, 5.0, 0.1, 0.96) for step in range(6)]
    assert seen == [[tau] * TINY_LAYERS for tau in expected]
