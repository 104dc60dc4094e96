"""Runs whose depths are drawn by lot, and the run that fits the controllers afterwards."""

import json
import shutil
from math import inf

import pytest
from safetensors.torch import load_file
from transformers import TrainerCallback

from versatileffn.errors import ConfigError
from versatileffn.training import run as run_module
from versatileffn.training.init import build_model, model_config
from versatileffn.training.run import train
from versatileffn.training.schedules import opened_at

VERSATILE = {"variant": "versatile", "num_experts": 4, "max_loops": 3}
PREDICTOR = "model.layers.{}.controller.loop_head.weight"


def weights(run):
    return load_file(run / "model" / "model.safetensors")


def entries(run, key):
    lines = map(json.loads, (run / "log.jsonl").read_text().splitlines())
    return [entry for entry in lines if key in entry]


def test_first_every_depth_and_then_the_controller_alone(make_config, tmp_path, capsys):
    config = make_config(
        model__ffn=VERSATILE, optim__sampled_loops={"ratio": 0.5}, run__logging_steps=1,
        run__save_steps=3,
    )  # fmt: skip
    planned = model_config(config.model, 64, None, 32)
    start = build_model(config.model, planned, config.run.seed).state_dict()
    first = train(config)
    assert "loop predictors are as they started" in capsys.readouterr().out
    trained = weights(first)
    for name, weight in start.items():
        assert trained[name].equal(weight) == (name in {PREDICTOR.format(n) for n in (0, 1)}), name
    shares = [entry["layer_1/loop_share_1"] for entry in entries(first, "loss")]
    assert sum(shares) / len(shares) == pytest.approx(4 / 7, abs=0.05)

    second = train(make_config(
        model__architecture=None, model__init_from=str(first / "model"),
        optim__frozen=["^(?!.*controller)"], run__output_dir=str(tmp_path / "fitted"),
    ))  # fmt: skip
    fitted = weights(second)
    for name, weight in trained.items():
        assert fitted[name].equal(weight) == ("controller" not in name), name


def test_a_resumed_run_goes_on_drawing(make_config):
    config = make_config(model__ffn=VERSATILE, optim__sampled_loops={})
    run = train(config)
    before = weights(run)
    (run / "run.json").unlink()
    shutil.rmtree(run / "model")
    shutil.rmtree(run / "checkpoints" / "checkpoint-6")
    train(config)
    assert all(weight.equal(before[name]) for name, weight in weights(run).items())


def test_where_nothing_can_be_drawn_it_is_refused(make_config):
    for ffn in ({"variant": "k-loop"}, None, {"max_loops": 1}):
        with pytest.raises(ConfigError, match=r"optim\.sampled_loops has no effect on this model"):
            train(make_config(model__ffn=ffn, optim__sampled_loops={}))
    with pytest.raises(ConfigError, match="no meaning for loop_mix='soft'"):
        train(make_config(model__ffn={"loop_mix": "soft"}, optim__sampled_loops={}))
    with pytest.raises(ValueError, match="ratio"):
        make_config(optim__sampled_loops={"ratio": 0})


def test_the_newest_loops_part_is_counted_from_0_to_1():
    assert [opened_at(step, 12, 3, 0.5) for step in range(8)] == [
        (1, 1.0), (1, 1.0), (2, 0.0), (2, 0.5), (3, 0.0), (3, 0.5), (3, 1.0), (3, 1.0),
    ]  # fmt: skip


@pytest.mark.parametrize("ramp", [True, False])
def test_gains_rise_in_every_layer_while_their_loop_opens(make_config, monkeypatch, ramp):
    seen = []

    class Watch(TrainerCallback):
        def on_step_end(self, args, state, control, model=None, **kwargs):
            seen.append([layer.opened for layer in model.model.layers])

    original = run_module._add_callbacks
    monkeypatch.setattr(
        run_module, "_add_callbacks", lambda t, *a: (original(t, *a), t.add_callback(Watch()))
    )
    train(make_config(
        model__ffn=VERSATILE, optim__loop_curriculum={"share": 0.5, "ramp": ramp},
        run__max_steps=8, run__schedule_steps=12,
    ))  # fmt: skip
    rising, at_once = [inf, inf, 1, 1.5, 2, 2.5, inf, inf], [inf] * 8
    assert seen == [[each] * 2 for each in (rising if ramp else at_once)]
