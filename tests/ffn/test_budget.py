"""A capped plan: no token above the cap, nothing changed below it, λ as for those loops."""

import dataclasses

import pytest
import torch

from support.layers import PLANS, decide, make_any, make_hidden
from versatileffn.errors import ConfigError, PlanError
from versatileffn.ffn.config import Versatile
from versatileffn.ffn.plan_fields import PER_TOKEN

LOOPING = {name: config for name, config in PLANS.items() if config.loops > 1}
looping = pytest.mark.parametrize("config", LOOPING.values(), ids=LOOPING)


def plan_of(config, *tokens):
    layer = make_any("swiglu", config, gains_at=0.4).eval()
    return decide(layer, make_hidden(*tokens, 16))


@looping
def test_tokens_under_the_cap_keep_every_bit(config):
    plan = plan_of(config, 5, 40)
    caps = torch.arange(5) % config.loops + 1
    for given in (*range(1, config.loops + 1), caps):
        capped = plan.capped(given)
        cap = torch.as_tensor(given).expand(5)[:, None]
        assert torch.equal(capped.loop_count, plan.loop_count.clamp(max=cap))
        under = plan.loop_count <= cap
        if not plan.hard:  # a softmax always leaves something for later loops
            under = under & (cap == config.loops)
        for name in PER_TOKEN:
            if getattr(plan, name) is not None:
                assert torch.equal(getattr(capped, name)[under], getattr(plan, name)[under]), name
        capped.flatten().check()


@looping
def test_a_hard_plan_is_what_other_counts_make_it(config):
    plan = plan_of(config, 60)
    if not plan.hard:
        pytest.skip("with_loops makes a plan hard")
    for cap in range(1, config.loops + 1):
        capped, expected = plan.capped(cap), plan.with_loops(plan.loop_count.clamp(max=cap))
        assert torch.equal(capped.loop_probs, expected.loop_probs)
        assert torch.equal(capped.lam, expected.lam)
        if plan.fusion is None:
            assert torch.equal(capped.lam, plan.lam)


def test_a_soft_plan_moves_what_lies_beyond_to_the_cap():
    """As an average over hard plans: E[min(ℓ, cap)] for ℓ drawn by p."""
    plan = plan_of(PLANS["soft"], 30)
    for cap in range(1, 5):
        capped = plan.capped(cap)
        expected = sum(plan.loop_probs[:, loop - 1] * min(loop, cap) for loop in range(1, 5))
        torch.testing.assert_close(capped.expected_loops, expected)
        torch.testing.assert_close(capped.lam, 1 - expected / 4)
        assert torch.equal(capped.loop_probs[:, : cap - 1], plan.loop_probs[:, : cap - 1])
        assert not capped.loop_probs[:, cap:].any()


def test_a_soft_token_with_nothing_beyond_the_cap_keeps_every_bit():
    plan = plan_of(PLANS["soft"], 30)
    probs = plan.loop_probs.clone()
    probs[:15, 2:] = 0
    plan = dataclasses.replace(plan, loop_probs=probs)
    assert torch.equal(plan.capped(2).loop_probs[:15], probs[:15])


def test_gradients_stay():
    """The straight-through p of a token that is capped still tells its loop head."""
    layer = make_any("swiglu", Versatile(), gains_at=0.4)
    plan = decide(layer, make_hidden(30, 16)).capped(2)
    plan.lam.sum().backward()
    assert layer.controller.loop_head.weight.grad.any()


def test_a_uniform_plan_stays_uniform_under_one_number():
    plan = plan_of(PLANS["k-loop"], 2, 9)
    assert plan.capped(2).uniform == 2
    assert plan.capped(3).uniform == 3
    varied = plan.capped(torch.tensor([1, 3]))
    assert varied.uniform is None
    assert varied.loop_count.tolist() == [[1] * 9, [3] * 9]
    assert not varied.lam.any()


def test_capping_twice_keeps_the_lower_cap():
    plan = plan_of(PLANS["paper"], 40)
    for first, second in ((1, 3), (3, 1), (2, 2)):
        twice, once = plan.capped(first).capped(second), plan.capped(min(first, second))
        assert twice.limit == once.limit
        assert torch.equal(twice.loop_probs, once.loop_probs)
        assert torch.equal(twice.lam, once.lam)
    assert plan.capped(1).with_loops(torch.full((40,), 4)).limit is None


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (0, "max_loops=0 is too few.*give 1 to 4"),
        (5, "max_loops=5 is more than the 4 loops there are: give 1 to 4, or None"),
        (True, "max_loops=True must be a whole number"),
        (2.0, "max_loops=2.0 must be a whole number"),
        ("2", "max_loops='2' must be a whole number"),
        (torch.tensor([1.0]), "must hold whole numbers, not torch.float32"),
        (torch.tensor([True]), "must hold whole numbers, not torch.bool"),
        (torch.tensor([], dtype=torch.int64), "is empty"),
        (torch.tensor([2, 0]), "max_loops=0 is too few"),
        (torch.tensor([2, 9]), "max_loops=9 is more"),
    ],
    ids=str,
)
def test_what_is_no_cap(given, message):
    with pytest.raises(ConfigError, match=message) as failure:
        plan_of(PLANS["paper"], 2, 3).capped(given)
    assert "\n" not in str(failure.value)


@pytest.mark.parametrize("shape", [(3,), (3, 1), (2, 4), (2, 3, 1)], ids=str)
def test_caps_of_another_batch(shape):
    with pytest.raises(PlanError, match="one for each sequence of this batch"):
        plan_of(PLANS["paper"], 2, 3).capped(torch.ones(shape, dtype=torch.int64))


def test_a_limit_that_is_no_limit():
    plan = plan_of(PLANS["paper"], 40)
    with pytest.raises(PlanError, match="limit=1 promises"):
        dataclasses.replace(plan, limit=1).check()
