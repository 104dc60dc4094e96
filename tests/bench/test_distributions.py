import pytest
import torch

from benchmarks.distributions import (
    SHARES,
    PrescribedController,
    gumbel_noise_for,
    loop_counts,
)
from support.layers import make_hidden, make_layer


@pytest.mark.parametrize("tokens", [1, 7, 100, 512, 2048])
@pytest.mark.parametrize("name", SHARES)
def test_shares_are_as_close_as_whole_counts_allow(name, tokens):
    assert sum(SHARES[name]) == pytest.approx(1)
    counts = loop_counts(SHARES[name], tokens, seed=3)
    assert len(counts) == tokens
    assert counts.min() >= 1
    assert counts.max() <= 4
    mean = sum(loop * share for loop, share in enumerate(SHARES[name], start=1))
    assert name == "trained" or mean == pytest.approx(float(name))
    below = 0.0
    for loop, share in enumerate(SHARES[name], start=1):
        below += share * tokens
        assert abs(int((counts <= loop).sum()) - below) <= 0.5 + 1e-9


def test_counts_are_shuffled_by_the_seed():
    one, same, other = (loop_counts(SHARES["2.5"], 64, seed) for seed in (0, 0, 1))
    assert torch.equal(one, same)
    assert not torch.equal(one, other)
    assert torch.equal(one.sort().values, other.sort().values)


def test_the_noise_forces_the_counts_without_saturating_p():
    logits = 3 * make_hidden(200, 4)
    wanted = loop_counts(SHARES["2.5"], 200)
    p = (logits + gumbel_noise_for(logits, wanted)).softmax(-1)
    assert torch.equal(p.argmax(-1) + 1, wanted)
    assert p.max() < 0.5


def test_a_prescribed_controller_keeps_gates_and_gradients():
    layer, hidden = make_layer().train(), make_hidden(3, 5, 16).requires_grad_()
    wanted = loop_counts(SHARES["3.1"], 15)
    own = layer.controller
    layer.controller = PrescribedController(own, wanted)
    plan = layer(hidden).plan
    assert torch.equal(plan.loop_count.flatten(), wanted)
    torch.testing.assert_close(plan.gates, own(hidden).gates)
    (plan.lam * make_hidden(3, 5)).sum().backward()
    assert own.loop_head.weight.grad.abs().max() > 1e-3
    few = layer.controller(hidden[:1, :2].detach())
    assert torch.equal(few.loop_count.flatten(), wanted[:2])
