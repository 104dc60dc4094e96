import pytest
import torch

from benchmarks.distributions import SHARES, loop_counts, prescribe
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


def test_a_prescribed_controller_keeps_gates_and_gradients():
    layer, hidden = make_layer().train(), make_hidden(3, 5, 16).requires_grad_()
    wanted, own = loop_counts(SHARES["3.1"], 15), layer.controller
    gates = own(hidden).gates
    prescribe(own, wanted)
    plan = layer(hidden).plan
    assert torch.equal(plan.loop_count.flatten(), wanted)
    torch.testing.assert_close(plan.gates, gates)
    (plan.lam * make_hidden(3, 5)).sum().backward()  # p isn't saturated
    assert own.loop_head.weight.grad.abs().max() > 1e-3
    few = own(hidden[:1, :2].detach())
    assert torch.equal(few.loop_count.flatten(), wanted[:2])


def test_the_wanted_loop_leads_by_a_small_margin():
    layer, hidden = make_layer(loop_mix="soft").eval(), 30 * make_hidden(200, 16)
    wanted = loop_counts(SHARES["2.5"], 200)
    prescribe(layer.controller, wanted)
    p = layer.controller(hidden).loop_probs
    assert torch.equal(p.argmax(-1) + 1, wanted)
    assert p.max() < 0.5
