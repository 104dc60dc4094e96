"""A controller that has collapsed is named once, early, with what may help."""

import json
import shutil

import pytest
import torch
from transformers import LlamaConfig

from versatileffn.ffn.config import Versatile
from versatileffn.models.family import model_class, reuse_config
from versatileffn.training.collapse import Collapse, CollapseWatch
from versatileffn.training.run import train

SHAPE = {
    "vocab_size": 64, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2,
    "num_attention_heads": 2, "max_position_embeddings": 32, "bos_token_id": None,
    "eos_token_id": 63, "pad_token_id": None,
}  # fmt: skip
LONG = {"run__max_steps": 40, "run__logging_steps": 1, "run__save_steps": 4, "run__eval_steps": 40}


@pytest.fixture
def biased(tmp_path):
    """A checkpoint whose second layer sends whatever it reads to three loops."""
    torch.manual_seed(0)
    config = reuse_config(LlamaConfig(**SHAPE), Versatile(max_loops=3))
    model = model_class(config)(config)
    with torch.no_grad():
        model.model.embed_tokens.weight += 1.0  # a direction that all tokens share
        model.reuse_layers()[1].controller.loop_head.weight[2] += 1.0
    model.save_pretrained(tmp_path / "biased")
    return {"model__architecture": None, "model__init_from": str(tmp_path / "biased")}


def records(caplog):
    return [each.getMessage() for each in caplog.records if "has collapsed" in each.message]


def summary(run):
    return json.loads((run / "run.json").read_text())


def test_a_run_that_collapses_warns_once_and_records_it(make_config, biased, caplog):
    run = train(make_config(**biased, **LONG))
    (said,) = records(caplog)
    assert "layer_2 has collapsed" in said
    assert "at step 3, all tokens take 3 of its loops" in said
    assert "optim.loop_curriculum={share: 0.4}" in said
    assert summary(run)["collapsed"] == [{"layer": "layer_2", "loops": 3, "step": 3}]


def test_a_run_that_does_not_is_left_in_peace(make_config, caplog):
    run = train(make_config(model__ffn={"max_loops": 3}, **LONG))
    assert not records(caplog)
    assert summary(run)["collapsed"] == []


@pytest.mark.parametrize("ffn", [{"variant": "k-loop"}, {"fusion": "width"}, None], ids=str)
def test_who_decides_nothing_cannot_collapse(make_config, caplog, ffn):
    run = train(make_config(model__ffn=ffn, run__max_steps=30, run__logging_steps=1))
    assert not records(caplog)
    assert summary(run)["collapsed"] == []


def test_a_resumed_run_warns_no_second_time_and_keeps_its_record(make_config, biased, caplog):
    config = make_config(**biased, **LONG)
    run = train(config)
    before = summary(run)["collapsed"]
    (run / "run.json").unlink()
    shutil.rmtree(run / "model")
    caplog.clear()
    train(config)
    assert not records(caplog)
    assert summary(run)["collapsed"] == before


def test_a_curriculum_is_judged_once_all_loops_are_open(make_config, biased, caplog):
    """While it keeps all tokens at one loop it is no collapse; afterwards it is."""
    run = train(
        make_config(
            **biased, **LONG, optim__loop_curriculum={"share": 0.3}, optim__learning_rate=1e-4
        )
    )
    (said,) = records(caplog)
    assert "layer_2" in said
    assert "optim.loop_curriculum.share" in said
    (found,) = summary(run)["collapsed"]
    assert found == {"layer": "layer_2", "loops": 3, "step": 8 + 3}  # all are open in step 9


def entry(share, loops=2, **more):
    shares = {1: 1 - share, 2: 0.0} | {loops: share}
    return {f"layer_1/loop_share_{n}": value for n, value in shares.items()} | more


def test_three_samples_in_a_row_at_one_count_within_the_first_steps():
    watch = CollapseWatch(schedule_steps=100)
    for step, share in enumerate([1.0, 0.995, 0.98, 1.0, 1.0], start=1):
        assert watch.see(step, entry(share)) == []
    assert watch.see(6, entry(1.0)) == [Collapse("layer_1", 2, 6)]
    assert watch.see(7, entry(1.0)) == []
    changing = CollapseWatch(schedule_steps=100)
    for step in range(1, 15):
        assert changing.see(step, entry(1.0, loops=1 + step % 2)) == []
    late = CollapseWatch(schedule_steps=100)
    assert not any(late.see(step, entry(1.0)) for step in range(14, 60))
    early = CollapseWatch(schedule_steps=100)
    assert any(early.see(step, entry(1.0)) for step in range(13, 16))  # the control


def test_entries_that_say_nothing_of_loops_are_passed_over():
    watch = CollapseWatch(schedule_steps=100)
    assert watch.see(0, {"eval_loss": 1.0}) == []
    for step in (1, 2):
        watch.see(step, entry(1.0))
        watch.see(step, {"eval_loss": 1.0})
    assert watch.see(3, entry(1.0)) == [Collapse("layer_1", 2, 3)]
