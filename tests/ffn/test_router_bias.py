"""Biases that even out the experts' loads: how they move, what they touch, where they are kept."""

import pytest
import torch

import versatileffn as vf
from support.families import tiny_dense
from support.layers import make_hidden
from support.models import make_ids, make_model
from versatileffn.ffn.controller import select_experts
from versatileffn.ffn.router_bias import RouterBias

BIASED = {"router_bias_rate": 0.01, "router_aux_loss_coef": 0.0}


def test_a_bias_moves_by_the_rate_against_the_load_of_training():
    bias = RouterBias(4, 0.25)
    logits = torch.tensor([[4.0, 3, 0, 0], [4, 0, 3, 0], [4, 3, 0, 0]])
    assert bias(logits, 2).tolist() == [[0, 1], [0, 2], [0, 1]]
    bias(logits[:1], 2)  # another micro-batch of the step
    bias.eval()(logits, 2)
    bias.move()  # loads are 4, 3, 1 and 0; their mean is 2
    assert bias.bias.tolist() == [-0.25, -0.25, 0.25, 0.25]
    bias.move()  # nothing was counted since
    assert bias.bias.tolist() == [-0.25, -0.25, 0.25, 0.25]


def test_loads_become_even_and_without_it_they_stay_as_they_are():
    logits = torch.randn(2000, 8, generator=torch.Generator().manual_seed(0))
    logits[:, 0] += 2
    logits[:, 1] -= 2
    bias = RouterBias(8, 1e-3)

    def busiest(corrected):
        experts = select_experts(logits, 2, corrected)[1]
        return torch.bincount(experts.flatten(), minlength=8).max().item() / experts.numel()

    before = busiest(None)
    for _ in range(400):
        busiest(bias)
        bias.move()
    assert before > 0.4
    assert busiest(bias) < 0.15


@pytest.mark.parametrize("top_k", [1, 3])
def test_gates_are_made_without_the_bias(top_k):
    logits, bias = make_hidden(20, 6), RouterBias(6, 0.1).double()
    bias.bias.copy_(torch.linspace(-1, 1, 6))
    gates, experts = select_experts(logits, top_k, bias)
    of_all = logits.softmax(-1).gather(-1, experts)
    expected = of_all if top_k == 1 else of_all / of_all.sum(-1, keepdim=True)
    torch.testing.assert_close(gates, expected)
    assert not torch.equal(experts, select_experts(logits, top_k)[1])  # the bias has its say


@pytest.mark.parametrize("variant", ["versatile", "moe"])
def test_it_moves_in_every_layer_and_is_saved(tmp_path, variant):
    model, ids = make_model(variant=variant, **BIASED).train(), make_ids(2, 9)
    model(ids, labels=ids).loss.backward()
    model.move_router_biases()
    moved = {name: b.clone() for name, b in model.named_buffers() if "router_bias" in name}
    assert len(moved) == 2
    steps = torch.stack(list(moved.values())) / 0.01  # each by the rate, or not at all
    torch.testing.assert_close(steps, steps.sign())
    assert steps.any(-1).all()
    model.eval().save_pretrained(tmp_path)
    loaded = type(model).from_pretrained(tmp_path)
    assert all(torch.equal(dict(loaded.named_buffers())[name], b) for name, b in moved.items())
    assert torch.equal(loaded(ids).logits, model(ids).logits)


@pytest.mark.parametrize("ffn", [vf.Versatile(**BIASED), vf.MoE(**BIASED)], ids=str)
def test_a_conversion_starts_without_bias(tmp_path, ffn):
    tiny_dense("llama").save_pretrained(tmp_path)
    model, _ = vf.upcycle(tmp_path, ffn)
    biases = [m.bias for m in model.modules() if isinstance(m, RouterBias)]
    assert len(biases) == model.config.num_hidden_layers
    assert all(b.device.type == "cpu" and not b.any() for b in biases)
