"""`optim.consistency`: capped exits are pulled to the free ones, and only they are."""

import json
import shutil

import pytest
import torch
from safetensors.torch import load_file

from support.models import make_ids, make_model
from versatileffn.budget import compute_budget
from versatileffn.errors import ConfigError
from versatileffn.ffn.router_bias import RouterBias
from versatileffn.training import consistency as consistency_module
from versatileffn.training.consistency import consistency_loss
from versatileffn.training.run import train

VERSATILE = {"variant": "versatile", "num_experts": 4, "max_loops": 3}


def test_it_is_the_divergence_of_the_capped_pass_where_labels_count(monkeypatch):
    model, ids = make_model(max_loops=3), make_ids(4, 7)
    labels = ids.clone()
    labels[:2, 1:4] = -100
    caps = torch.tensor([1, 2, 2, 1])
    monkeypatch.setattr(consistency_module.torch, "randint", lambda *a, **k: caps)
    free = model(ids).logits.detach().requires_grad_()
    found = consistency_loss(model, {"input_ids": ids, "labels": labels}, free, model)
    with compute_budget(model, max_loops=caps):
        capped = model(ids).logits
    p, q = free[:, :-1].softmax(-1), capped[:, :-1].softmax(-1)
    each = (p * (p.log() - q.log())).sum(-1)
    expected = each[labels[:, 1:] != -100].sum()
    assert found.item() == pytest.approx(expected.item(), rel=1e-4)
    assert expected > 1e-3
    found.backward()
    assert free.grad is None
    assert model.model.layers[0].mlp.up_proj.weight.grad.any()
    assert all(layer.budget is None for layer in model.reuse_layers())


def test_nothing_is_asked_of_tokens_that_loop_once():
    model, ids = make_model(variant="k-loop", num_loops=2), make_ids(2, 7)
    inputs = {"input_ids": ids, "labels": ids}
    with torch.no_grad():
        free = model(ids).logits
        apart = consistency_loss(model, inputs, free, model).item()
        with compute_budget(model, max_loops=1):
            once = model(ids).logits
        assert consistency_loss(model, inputs, once, model).item() == pytest.approx(0, abs=1e-4)
    assert apart > 1e-2


def test_the_capped_pass_is_no_load_of_the_biases():
    ffn = {"max_loops": 3, "router_bias_rate": 0.01, "router_aux_loss_coef": 0.0}
    model, ids = make_model(**ffn).train(), make_ids(4, 7)
    free = model(ids).logits
    biases = [part for part in model.modules() if isinstance(part, RouterBias)]
    loads = [bias.load.clone() for bias in biases]
    consistency_loss(model, {"input_ids": ids, "labels": ids}, free, model)
    assert len(loads) == 2
    assert all(bias.load.equal(load) for bias, load in zip(biases, loads, strict=True))


def entries(run):
    lines = map(json.loads, (run / "log.jsonl").read_text().splitlines())
    return [entry for entry in lines if "loss" in entry]


@pytest.mark.parametrize("micro_batch", [8, 2])
def test_the_training_loss_has_its_mean_over_tokens_whatever_the_accumulation(
    make_config, tmp_path, micro_batch
):
    """The first step's loss with and without its weight: the same draws, so the same passes."""
    first = []
    for coef in (1e4, 1e-9):
        run = train(make_config(
            model__ffn=VERSATILE, optim__consistency={"coef": coef}, run__max_steps=1,
            run__logging_steps=1, run__save_steps=1, run__output_dir=str(tmp_path / str(coef)),
            run__per_device_train_batch_size=micro_batch,
        ))  # fmt: skip
        first += entries(run)
    added = first[0]["consistency"]
    assert first[1]["consistency"] == pytest.approx(added, rel=1e-4)
    assert first[0]["loss"] - first[1]["loss"] == pytest.approx(1e4 * added, rel=1e-3)
    assert 1e4 * added > 0.1


def test_following_its_gradient_brings_shallow_exits_closer():
    model, ids = make_model(variant="k-loop", num_loops=3).train(), make_ids(4, 9)
    inputs, free = {"input_ids": ids, "labels": ids}, model(ids).logits
    optimizer, apart = torch.optim.Adam(model.parameters(), 3e-3), []
    for _ in range(20):
        torch.manual_seed(0)  # the same caps each time
        loss = consistency_loss(model, inputs, free, model)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        apart.append(loss.item())
    assert apart[-1] < 0.5 * apart[0]


def test_a_resumed_run_draws_the_same_caps_and_keeps_its_biases(make_config):
    ffn = {**VERSATILE, "router_bias_rate": 0.03, "router_aux_loss_coef": 0.0}
    config = make_config(
        model__ffn=ffn, optim__consistency={}, run__max_steps=5, run__save_steps=1,
        run__logging_steps=1,
    )  # fmt: skip
    run = train(config)
    before = load_file(run / "model" / "model.safetensors")
    biases = [weight for name, weight in before.items() if "router_bias" in name]
    assert len(biases) == 2
    assert any(bias.any() for bias in biases)
    (run / "run.json").unlink()
    shutil.rmtree(run / "model")
    shutil.rmtree(run / "checkpoints" / "checkpoint-5")
    train(config)
    after = load_file(run / "model" / "model.safetensors")
    assert all(weight.equal(after[name]) for name, weight in before.items())


def test_where_it_can_do_nothing_it_is_refused(make_config):
    for ffn in (None, {"variant": "moe"}, {"max_loops": 1}):
        with pytest.raises(ConfigError, match=r"optim\.consistency has no effect on this model"):
            train(make_config(model__ffn=ffn, optim__consistency={}))
    with pytest.raises(ValueError, match="no longer know their budget"):
        make_config(optim__consistency={}, run__gradient_checkpointing=True)
    with pytest.raises(ValueError, match="exclude each other"):
        make_config(optim__consistency={}, optim__sampled_loops={})
