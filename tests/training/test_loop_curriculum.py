"""`optim.loop_curriculum`: loops open one after the other, as a pure function of the step."""

import json
import math
import shutil

import pytest
import torch
from transformers import AutoModelForCausalLM, TrainerCallback

from support.families import tiny_dense
from versatileffn.errors import ConfigError
from versatileffn.evaluation import held_out
from versatileffn.training import run as run_module
from versatileffn.training import trainer as trainer_module
from versatileffn.training.run import train
from versatileffn.training.schedules import opened_at

VERSATILE = {"variant": "versatile", "num_experts": 4, "max_loops": 3}
HALF = {"share": 0.5}


@pytest.fixture
def watched(monkeypatch):
    """What `train` is given by `watched(config)`: per step, the open loops of each layer."""

    def watch(config):
        seen = []

        class Watch(TrainerCallback):
            def on_step_end(self, args, state, control, model=None, **kwargs):
                seen.append([layer.controller.open_loops for layer in model.model.layers])

        original = run_module._add_callbacks
        with monkeypatch.context() as patch:
            patch.setattr(
                run_module,
                "_add_callbacks",
                lambda t, *a: (original(t, *a), t.add_callback(Watch())),
            )
            return train(config), seen

    return watch


def test_equal_parts_of_the_share_and_all_loops_afterwards():
    counts = [opened_at(step, 1000, 4, 0.4)[0] for step in range(1000)]
    assert [counts.count(n) for n in (1, 2, 3, 4)] == [100, 100, 100, 700]
    assert counts == sorted(counts)
    assert [opened_at(step, 4, 4, 1.0)[0] for step in range(6)] == [1, 2, 3, 4, 4, 4]
    assert {opened_at(step, 10, 1, 0.5)[0] for step in range(10)} == {1}


def test_every_layer_trains_with_the_loops_of_its_step(make_config, watched):
    run, seen = watched(
        make_config(
            model__ffn=VERSATILE, optim__loop_curriculum=HALF, run__max_steps=12,
            run__logging_steps=1, run__save_steps=4,
        )
    )  # fmt: skip
    expected = [1, 1, 2, 2, 3, 3] + [3] * 6
    assert seen == [[count] * 2 for count in expected]
    log = [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]
    steps = [entry for entry in log if "loss" in entry]
    assert [entry["open_loops"] for entry in steps] == expected
    for entry in steps:
        most = entry["open_loops"]
        assert all(entry[f"layer_1/loop_share_{n}"] == 0 for n in range(most + 1, 4))
        assert entry[f"layer_1/loop_share_{most}"] > 0
    model = AutoModelForCausalLM.from_pretrained(run / "model")
    assert model.reuse_layers()[0].controller.open_loops == 3


def test_a_resumed_run_goes_on_with_the_loops_of_its_step(make_config, watched):
    config = make_config(
        model__ffn=VERSATILE, optim__loop_curriculum={"share": 1.0}, run__max_steps=6
    )
    run, seen = watched(config)
    before = (run / "model" / "model.safetensors").read_bytes()
    (run / "run.json").unlink()
    shutil.rmtree(run / "model")
    shutil.rmtree(run / "checkpoints" / "checkpoint-6")
    _, again = watched(config)
    assert again == seen[4:] == [[3, 3]] * 2
    assert (run / "model" / "model.safetensors").read_bytes() == before


def test_the_held_out_loss_sees_the_open_loops(make_config, monkeypatch):
    seen = []
    original = held_out.held_out_loss

    def look(model, *args):
        seen.append(model.reuse_layers()[0].controller.open_loops)
        return original(model, *args)

    monkeypatch.setattr(trainer_module, "held_out_loss", look)
    train(make_config(
        model__ffn=VERSATILE, optim__loop_curriculum={"share": 1.0}, run__eval_steps=2,
    ))  # fmt: skip
    assert seen == [1, 1, 2, 3]  # before the first step, and after steps 2, 4 and 6


def test_an_upcycled_model_has_a_curriculum_too(make_config, tmp_path, watched):
    tiny_dense("llama", vocab_size=64).save_pretrained(tmp_path / "dense")
    run, seen = watched(make_config(
        model__architecture=None, model__init_from=str(tmp_path / "dense"),
        model__ffn={"reuse_gains": "learned", "max_loops": 2},
        optim__loop_curriculum={"share": 1.0},
    ))  # fmt: skip
    assert [layers[0] for layers in seen] == [1, 1, 1, 2, 2, 2]
    log = [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]
    assert all(math.isfinite(entry["loss"]) for entry in log if "loss" in entry)


def test_without_a_curriculum_nothing_is_closed_or_logged(make_config, watched):
    run, seen = watched(make_config(model__ffn=VERSATILE))
    assert seen == [[3, 3]] * 6
    assert "open_loops" not in (run / "log.jsonl").read_text()


def test_a_run_that_ends_before_the_last_loop_opens_says_so(make_config, capsys):
    train(make_config(
        model__ffn=VERSATILE, optim__loop_curriculum={"share": 1.0}, run__schedule_steps=12,
    ))  # fmt: skip
    assert "only 2 of 3 loops open before the run's last step" in capsys.readouterr().out


@pytest.mark.parametrize(
    "ffn",
    [None, {"variant": "k-loop"}, {"variant": "moe"}, {"fusion": "width"}, {"max_loops": 1}],
    ids=str,
)
def test_where_there_is_no_loop_to_open_it_is_refused(make_config, ffn):
    with pytest.raises(ConfigError, match=r"optim\.loop_curriculum has no effect on this model"):
        train(make_config(model__ffn=ffn, optim__loop_curriculum=HALF))


@pytest.mark.parametrize("share", [0, 1.5, "half"])
def test_a_share_that_is_none_is_refused(make_config, share):
    with pytest.raises(ValueError, match="share"):
        make_config(optim__loop_curriculum={"share": share})


def test_a_run_with_all_loops_open_is_another_run(make_config, tmp_path):
    """The control of all above: the curriculum changes what is learned."""
    finals = [
        train(make_config(
            model__ffn=VERSATILE, optim__loop_curriculum=curriculum,
            run__output_dir=str(tmp_path / name),
        ))
        for name, curriculum in (("open", None), ("closed", HALF))
    ]  # fmt: skip
    weights = [
        AutoModelForCausalLM.from_pretrained(run / "model").model.layers[0].mlp.up_proj.weight
        for run in finals
    ]
    assert not torch.allclose(*weights, atol=1e-5)
