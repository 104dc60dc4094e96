"""What a plan says of itself, and which plans are refused."""

import dataclasses

import pytest
import torch

from support.layers import make_hidden, make_layer
from versatileffn.errors import PlanError
from versatileffn.ffn.plan import expected_loops


@pytest.mark.parametrize("max_loops", [1, 4, 7])
def test_equation_12(max_loops):
    """E[L] = Σ ℓ·p_ℓ, added up one loop and one token at a time."""
    plan = make_layer(loop_mix="soft", max_loops=max_loops).controller(make_hidden(3, 5, 16))
    expected = [
        [sum(loop * p for loop, p in enumerate(token, start=1)) for token in row]
        for row in plan.loop_probs.tolist()
    ]
    torch.testing.assert_close(expected_loops(plan.loop_probs).tolist(), expected)
    torch.testing.assert_close(plan.expected_loops.tolist(), expected)
    if max_loops > 1:
        assert plan.expected_loops.std() > 0.1
        # Eq. 13 has its λ from there
        lam = (max_loops - plan.expected_loops) / max_loops
        torch.testing.assert_close(plan.lam, lam)


def test_a_hard_plan_expects_the_loops_it_runs():
    plan = make_layer().controller(make_hidden(40, 16))
    assert torch.equal(plan.expected_loops, plan.loop_count.double())
    assert torch.equal(
        torch.autograd.grad(plan.expected_loops.sum(), plan.loop_probs)[0][0],
        torch.arange(1.0, 5.0, dtype=torch.float64),
    )


def edited(**changes):
    """A good plan of the layer below, with some fields changed."""
    plan = make_layer().eval().controller(make_hidden(5, 16))
    return dataclasses.replace(
        plan, **{n: c(plan) if callable(c) else c for n, c in changes.items()}
    )


REFUSED = {
    "no-gates": ({"gates": None}, "lacks gates: give gates, experts and slices"),
    "no-experts": ({"experts": None}, "lacks experts"),
    "no-slices": ({"slices": None}, "lacks slices"),
    "slices-alone": ({"gates": None, "experts": None}, "lacks gates and experts"),
    "lam-without-width": ({"gates": None, "experts": None, "slices": None}, "set lam to 0"),
    "fewer-gates": ({"gates": lambda p: p.gates[:, :1]}, "each selected expert needs one gate"),
    "no-such-expert": ({"experts": lambda p: p.experts + 8}, "experts must lie in 0 to 7"),
    "negative-expert": ({"experts": lambda p: p.experts - 9}, "experts must lie in 0 to 7"),
    "small-integers": ({"experts": lambda p: p.experts.int()}, "experts must be int64"),
    "expert-twice": ({"experts": lambda p: torch.zeros_like(p.experts)}, "an expert twice"),
    "other-tokens": ({"lam": lambda p: p.lam[:3]}, r"lam has shape \(3,\) in a plan for tokens"),
    "no-column": ({"gates": lambda p: p.gates[:, 0]}, "gates has shape"),
    "a-list": ({"loop_count": [1, 2, 3, 4, 1]}, "loop_count=.* must be a tensor"),
    "no-lam": ({"lam": None}, "lam=None must be a tensor"),
    "hard-no": ({"hard": "no"}, "hard='no' must be True or False"),
    "gains": ({"loop_gains": torch.ones(3)}, "loop_gains of shape .* max_loops=4"),
    "soft-sum": ({"hard": False, "loop_probs": lambda p: p.loop_probs * 2}, "must sum to 1"),
}


@pytest.mark.parametrize(("changes", "message"), REFUSED.values(), ids=REFUSED)
@pytest.mark.parametrize("swapped", [False, True], ids=["given", "of-a-controller"])
def test_a_plan_that_contradicts_itself_is_refused(changes, message, swapped):
    """Given by hand, or made by somebody's controller; with gradients and without."""
    layer, hidden, plan = make_layer().eval(), make_hidden(5, 16), edited(**changes)
    arguments = (hidden, plan)
    if swapped:
        layer.controller = Constant(plan)
        arguments = (hidden,)
    for grad in (False, True):
        with torch.set_grad_enabled(grad), pytest.raises(PlanError, match=message):
            layer(*arguments)


class Constant(torch.nn.Module):
    def __init__(self, plan):
        super().__init__()
        self.plan = plan

    def forward(self, hidden):
        return self.plan


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"max_loops": 3}, "plan for max_loops=3 given to a layer with max_loops=4"),
        ({"max_loops": 6}, "plan for max_loops=6"),
        ({"fusion": "width"}, "plan for max_loops=1"),
        ({"num_experts": 4}, "num_experts=4.*num_experts=8"),
        ({"d_expert": 3}, "d_expert=3.*d_expert=4"),
        ({"d_hidden": 64}, "slices of an FFN with d_hidden=64 given to one with d_hidden=32"),
    ],
    ids=str,
)
@pytest.mark.filterwarnings("ignore:.*belong to no expert.*:UserWarning")
def test_a_plan_of_another_layer_is_refused(settings, message):
    hidden = make_hidden(5, 16)
    plan = make_layer(**settings).eval().controller(hidden)
    with pytest.raises(PlanError, match=message):
        make_layer().eval()(hidden, plan)


def test_a_plan_with_a_width_pathway_is_refused_where_there_is_none():
    hidden = make_hidden(5, 16)
    plan = make_layer().eval().controller(hidden)
    with pytest.raises(PlanError, match="given to a layer with None"):
        make_layer(fusion="depth").eval()(hidden, plan)


def test_edits_that_agree_are_carried_out():
    """Depth alone, other gates, other experts: each differs from the plan and is accepted."""
    layer, hidden, plan = make_layer().eval(), make_hidden(5, 16), edited()
    nothing = {"gates": None, "experts": None, "slices": None}
    outputs = [
        layer(hidden, dataclasses.replace(plan, **changes)).hidden
        for changes in (
            {},
            nothing | {"lam": torch.zeros_like(plan.lam)},
            {"gates": plan.gates.flip(-1)},
            {"experts": (plan.experts + 1) % 8},
        )
    ]
    assert len({output.sum().item() for output in outputs}) == 4
