"""Layers with a budget: every executor carries out the capped plan, and does no more than that."""

import pytest
import torch

from support.layers import PLANS, as_naive, make_any, make_hidden
from versatileffn.execution.select import execution_choices, forget_choices
from versatileffn.ffn import naive
from versatileffn.ffn.config import KLoop, Versatile

LOOPING = {name: config for name, config in PLANS.items() if config.loops > 1}
WAYS = ["auto", "masked", "recompute"]
forms = pytest.mark.parametrize("form", ["swiglu", "fused-biases", "scale", "sandwich"])
looping = pytest.mark.parametrize("config", LOOPING.values(), ids=LOOPING)


def run(layer, hidden, execution, grad=False):
    layer.execution = execution
    with torch.set_grad_enabled(grad):
        return layer(hidden)


def ways(layer):
    """Executions that this layer has, with gradients or without."""
    hard = getattr(layer.config, "loop_mix", "hard") == "hard"
    return [(way, grad) for way in WAYS if hard or way != "recompute" for grad in (False, True)]


@forms
@looping
def test_every_executor_equals_the_algorithms_with_a_budget(form, config):
    layer, hidden = make_any(form, config, gains_at=0.4).eval(), make_hidden(12, 16)
    truth = as_naive(layer)
    soft = getattr(config, "loop_mix", "hard") == "soft"
    for cap in range(1, config.loops + 1):
        truth.budget = cap
        layer.set_budget(cap)
        with torch.no_grad():
            expected = naive.train(truth, hidden) if soft else naive.infer(truth, hidden)[0]
        for way, grad in ways(layer):
            actual = run(layer, hidden, way, grad)
            torch.testing.assert_close(actual, expected, rtol=1e-10, atol=1e-10, msg=f"{cap} {way}")
    layer.set_budget(None)
    assert (run(layer, hidden, "auto") - expected).abs().max() <= 1e-10  # L again, without a cap


@forms
@looping
def test_gradients_are_those_of_the_algorithm_with_a_budget(form, config):
    layer = make_any(form, config, gains_at=0.4).eval()
    truth, found = as_naive(layer), {}
    truth.budget = 2
    layer.set_budget(2)
    for way in ("naive", "masked", "auto"):
        hidden = make_hidden(9, 16).requires_grad_()
        output = naive.train(truth, hidden) if way == "naive" else run(layer, hidden, way, True)
        inputs = [hidden, *layer.parameters()]
        found[way] = torch.autograd.grad((output**2).sum(), inputs, materialize_grads=True,
                                         allow_unused=True)  # fmt: skip
    for way in ("masked", "auto"):
        for actual, expected in zip(found[way], found["naive"], strict=True):
            torch.testing.assert_close(actual, expected, rtol=1e-8, atol=1e-9)


@pytest.mark.parametrize("form", ["fused-biases", "sandwich"])
@looping
def test_no_token_under_the_budget_changes(form, config):
    """To the bit where shapes are static. Tokens that stop early are ordered by their loops, and a
    product may round another row of the same matrix otherwise. A k-loop whose sequences differ has
    no uniform plan any more, and one loop needs no weights of its own: other sums, too."""
    layer, hidden = make_any(form, config, gains_at=0.4).eval(), make_hidden(4, 40, 16)
    with torch.no_grad():
        counts = layer.decide(hidden, layer.view()).loop_count
    soft = getattr(config, "loop_mix", "hard") == "soft"
    for budget in (*range(1, config.loops + 1), torch.tensor([1, config.loops, 2, 1])):
        cap = torch.as_tensor(budget).expand(4)[:, None]
        under = cap >= config.loops if soft else counts <= cap
        under = under.broadcast_to(counts.shape)
        if isinstance(budget, int):
            same_way = budget > 1 or getattr(config, "loop_rank", None) is None
        else:
            same_way = not isinstance(config, KLoop)
        for way, grad in ways(layer):
            layer.set_budget(None)
            expected = run(layer, hidden, way, grad)
            layer.set_budget(budget)
            actual = run(layer, hidden, way, grad)
            if same_way and (way == "masked" or bool((counts <= cap).all())):
                assert torch.equal(actual[under], expected[under])
            torch.testing.assert_close(actual[under], expected[under], rtol=1e-12, atol=1e-12)
            over = counts > cap
            assert not over.any() or soft or (actual[over] - expected[over]).abs().max() > 1e-3


def test_sequences_have_their_own_budgets():
    layer, hidden = make_any("swiglu", Versatile()).eval(), make_hidden(4, 30, 16)
    alone = []
    for cap in (1, 2, 3, 4):
        layer.set_budget(cap)
        alone.append(run(layer, hidden[cap - 1 : cap], "masked"))
    layer.set_budget(torch.tensor([1, 2, 3, 4]))
    for way in ("masked", "auto"):
        torch.testing.assert_close(
            run(layer, hidden, way), torch.cat(alone), rtol=1e-12, atol=1e-12
        )


@pytest.mark.parametrize("config", [KLoop(3, loop_rank=2), Versatile(loop_rank=2)], ids=str)
def test_one_loop_needs_no_weights_of_its_own(config):
    """Loop 1 has the shared weights, so that one product serves both pathways."""
    layer, hidden = make_any("swiglu", config).eval(), make_hidden(9, 16)
    forget_choices()
    layer.set_budget(1)
    run(layer, hidden, "packed")
    assert [choice["executor"] for choice in execution_choices()] == ["packed"]
