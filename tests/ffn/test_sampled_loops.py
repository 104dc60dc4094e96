"""Depths by lot, and gains that rise: the plan says so, and every executor does it."""

import pytest
import torch

from support.layers import make_hidden, make_layer, relative_error
from support.models import make_ids, make_model
from versatileffn.errors import ConfigError


def sampled(**settings):
    layer = make_layer(**settings)
    layer.controller.sampled_loops = 0.5
    return layer


def test_depths_have_the_shares_of_the_prior_whatever_the_token():
    layer, hidden = sampled(), make_hidden(1, 16).expand(20_000, 16)
    torch.manual_seed(0)
    plan = layer.controller(hidden)
    plan.check()
    shares = torch.bincount(plan.loop_count, minlength=5)[1:] / 20_000
    assert shares.tolist() == pytest.approx([8 / 15, 4 / 15, 2 / 15, 1 / 15], abs=0.02)
    torch.testing.assert_close(plan.lam, 1 - plan.loop_count.double() / 4)
    layer.controller.open_loops = 2
    assert layer.controller(hidden).loop_count.max() == 2
    layer.controller.sampled_loops = None
    assert layer.controller(hidden).loop_probs.requires_grad  # the control: the predictor is back


def test_in_evaluation_every_token_goes_as_deep_as_is_open():
    layer, hidden = sampled().eval(), make_hidden(30, 16)
    assert (layer.controller(hidden).loop_count == 4).all()
    layer.controller.open_loops = 3
    assert (layer.controller(hidden).loop_count == 3).all()


@pytest.mark.parametrize("execution", ["packed", "recompute"])
def test_the_router_learns_and_the_loop_predictor_is_not_asked(execution):
    gradients = {}
    for name in ("masked", execution):
        layer, hidden = sampled(execution=name), make_hidden(60, 16).requires_grad_()
        torch.manual_seed(3)
        layer(hidden).hidden.square().sum().backward()
        assert layer.controller.loop_head.weight.grad is None
        assert layer.controller.router.weight.grad.any()
        gradients[name] = [hidden.grad, *(p.grad for p in layer.parameters() if p.grad is not None)]
    for one, other in zip(*gradients.values(), strict=True):
        assert relative_error(one, other) < 1e-10


def test_a_model_draws_in_all_layers_and_its_predictors_are_not_trained():
    model, ids = make_model(reuse_layers=[1]).train(), make_ids(2, 9)
    model.sample_loops(1.0)
    model(ids, labels=ids).loss.backward()
    without = {name for name, p in model.named_parameters() if not p.requires_grad}
    assert without == {"model.layers.1.controller.loop_head.weight"}
    assert all(p.grad is not None for p in model.parameters() if p.requires_grad)
    model.sample_loops(None)
    assert all(p.requires_grad for p in model.parameters())


@pytest.mark.parametrize("gains", ["fixed", "learned"])
@pytest.mark.parametrize("execution", ["masked", "packed", "recompute"])
def test_gains_rise_with_what_is_open_of_their_loop(gains, execution):
    """Against the same layer with gains set by hand."""
    ramped = make_layer(reuse_gains=gains, gains_at=0.5, execution=execution)
    by_hand = make_layer(reuse_gains="learned", gains_at=0.5)
    start = 1.0 if gains == "fixed" else 0.5
    with torch.no_grad():
        by_hand.gains.loop_gains.copy_(start * torch.tensor([1.0, 0.25, 0.0]))
    outputs = []
    for layer in (ramped, by_hand):
        hidden = make_hidden(60, 16).requires_grad_()
        layer.opened = 2.25 if layer is ramped else layer.opened
        plan = layer.eval().decide(hidden, layer.mlp.view(layer.norm))
        if gains == "fixed" and layer is by_hand:
            plan.shared, plan.width_gain = 0.0, None
        out = layer(hidden, plan).hidden
        out.square().sum().backward()
        outputs.append((out, hidden.grad, layer.mlp.up_proj.weight.grad))
    for one, other in zip(*outputs, strict=True):
        assert relative_error(one, other) < 1e-10
    ramped.opened = 4.0
    free = ramped(make_hidden(60, 16)).hidden
    assert relative_error(outputs[0][0], free) > 1e-3  # the control


def test_a_model_sets_how_much_of_the_newest_loop_is_open():
    model = make_model(reuse_layers=[0])
    model.set_open_loops(3, 0.5)
    assert model.reuse_layers()[0].opened == 2.5
    plan = model(make_ids(1, 3), output_reuse_plans=True).reuse_plans[0]
    assert plan.loop_gains.tolist() == [1, 1, 0.5, 0]
    model.set_open_loops(3)  # none is left half open, and closed ones need no gain of 0
    assert model(make_ids(1, 3), output_reuse_plans=True).reuse_plans[0].loop_gains is None
    with pytest.raises(ConfigError, match=r"newest=2\.0 must lie between 0 and 1"):
        model.set_open_loops(2, 2.0)
