"""Mixture-of-Recursions' token choice, held to its definition written out token by token."""

import pytest
import torch

from versatileffn.errors import ConfigError
from versatileffn.layer import VersatileFFN


def make(**knobs):
    torch.manual_seed(0)
    layer = VersatileFFN(
        16, 32, controller="token-choice", fusion="depth", max_loops=3, **knobs
    ).double()
    torch.nn.init.normal_(layer.controller.loop_head.weight)
    return layer


def by_definition(layer, token):
    """H + g (H_ℓ̂ − H), with ℓ̂ the most probable depth and g its probability."""
    gate, choice = (layer.controller.loop_head.weight @ token).softmax(0).max(0)
    state = token
    for _ in range(int(choice) + 1):
        state = state + layer.mlp(layer.norm(state))
    return token + gate * (state - token)


def test_output_and_gradients():
    layer = make()
    hidden = torch.randn(7, 16, dtype=torch.float64, requires_grad=True)
    output = layer(hidden)
    assert len(set(output.plan.loop_count.tolist())) > 1
    expected = torch.stack([by_definition(layer, token) for token in hidden])
    torch.testing.assert_close(output.hidden, expected)
    inputs = [hidden, *layer.parameters()]
    weight = torch.randn_like(expected)
    got = torch.autograd.grad((output.hidden * weight).sum(), inputs)
    torch.testing.assert_close(got, torch.autograd.grad((expected * weight).sum(), inputs))


def test_its_balance_loss_is_over_depths():
    layer, hidden = make(), torch.randn(64, 16, dtype=torch.float64)
    plan = layer(hidden).plan
    probs = plan.loop_logits.softmax(-1)
    chosen = torch.nn.functional.one_hot(plan.loop_count - 1, 3).double()
    expected = 3 * (chosen.mean(0) * probs.mean(0)).sum()
    torch.testing.assert_close(plan.balance_loss(), expected)


@pytest.mark.parametrize("knobs", [{"fusion": "difficulty"}, {"loop_mix": "soft"}], ids=str)
def test_what_it_has_no_use_for(knobs):
    with pytest.raises(ConfigError, match="it needs fusion='depth' and loop_mix='hard'"):
        VersatileFFN(16, 32, controller="token-choice", **{"fusion": "depth", **knobs})
