"""Gradient accumulation through the real Trainer: the balance loss is averaged, not added up."""

import pytest
import torch
from safetensors.torch import load_file
from transformers import TrainerCallback

from versatileffn.data.packed import PackedDataset
from versatileffn.training import run as run_module
from versatileffn.training.batches import WindowBatches, plan_batches
from versatileffn.training.init import build_model, model_config
from versatileffn.training.run import train

MICRO_BATCHES = 4


class KeepGradients(TrainerCallback):
    """Copies what the optimizer is about to see."""

    def __init__(self) -> None:
        self.gradients: dict[str, torch.Tensor] = {}

    def on_pre_optimizer_step(self, args, state, control, model=None, **kwargs):
        if state.global_step == 0:
            self.gradients = {name: p.grad.clone() for name, p in model.named_parameters()}


def trainer_gradients(config, monkeypatch) -> dict[str, torch.Tensor]:
    keep = KeepGradients()
    original = run_module._add_callbacks

    def with_keeper(trainer, *args):
        original(trainer, *args)
        trainer.add_callback(keep)

    monkeypatch.setattr(run_module, "_add_callbacks", with_keeper)
    train(config)
    return keep.gradients


def mean_of_micro_batch_gradients(config, balance_weight: float = 1.0) -> dict[str, torch.Tensor]:
    data = PackedDataset(config.data.tokens, "train", config.data.seq_len)
    meta = data.meta
    planned = model_config(config.model, meta.vocab_size, meta.eos_token_id, config.data.seq_len)
    model = build_model(config.model, planned, config.run.seed)
    model.train()
    coefficient = model.config.ffn().router_aux_loss_coef
    for batch in WindowBatches(plan_batches(config, len(data), 1)):
        ids = torch.stack([data[i]["input_ids"] for i in batch])
        out = model(input_ids=ids, labels=ids)
        extra = (balance_weight - 1) * coefficient * out.aux_loss
        ((out.loss + extra) / MICRO_BATCHES).backward()
    return {name: p.grad for name, p in model.named_parameters()}


@pytest.mark.parametrize("ffn", [
    {"variant": "moe", "num_experts": 4},
    {"variant": "versatile", "num_experts": 4, "fusion": "width"},  # the router without loop noise
])  # fmt: skip
def test_accumulated_gradients_are_the_mean(make_config, monkeypatch, ffn):
    config = make_config(
        model__ffn=ffn | {"router_aux_loss_coef": 10.0},
        optim__max_grad_norm=1e9,
        run__max_steps=1,
        run__per_device_train_batch_size=2,
    )
    got = trainer_gradients(config, monkeypatch)
    expected = mean_of_micro_batch_gradients(config)
    wrong = mean_of_micro_batch_gradients(config, balance_weight=MICRO_BATCHES)
    router = next(name for name in got if "router" in name)
    for name, gradient in expected.items():
        torch.testing.assert_close(got[name], gradient, rtol=1e-5, atol=1e-6, msg=name)
    assert (wrong[router] - expected[router]).norm() > 0.5 * expected[router].norm()


def test_the_balance_loss_reaches_the_router_in_proportion_to_its_coefficient(
    make_config, monkeypatch, tmp_path
):
    """A balance loss that was logged but had no gradient would leave the router as it is."""
    gradients, weights = [], []
    for coefficient in (0.0, 10.0, 20.0):
        ffn = {"num_experts": 4, "fusion": "width", "router_aux_loss_coef": coefficient}
        config = make_config(
            model__ffn=ffn,
            optim__max_grad_norm=1e9,
            run__max_steps=2,
            run__output_dir=str(tmp_path / str(coefficient)),
        )
        with monkeypatch.context() as patch:
            gradients.append(trainer_gradients(config, patch))
        weights.append(load_file(tmp_path / str(coefficient) / "model" / "model.safetensors"))
    router = "model.layers.1.controller.router.weight"
    once, twice = (g[router] - gradients[0][router] for g in gradients[1:])
    assert once.norm() > 1e-4
    torch.testing.assert_close(twice, 2 * once, rtol=1e-3, atol=1e-5)
    assert not torch.equal(weights[0][router], weights[1][router])
