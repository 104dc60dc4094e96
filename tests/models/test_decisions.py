"""What a model says it decided is what its layers carried out, whoever decided it."""

import dataclasses
import warnings

import pytest
import torch
from torch import nn

from support.models import VARIANTS, make_ids, make_model
from versatileffn.errors import ConfigError
from versatileffn.execution.masked import run_masked
from versatileffn.ffn.moe import Routing
from versatileffn.ffn.plan import ReusePlan

ONCE = torch.tensor([1])


class Wrapping(nn.Module):
    """Asks another controller, and lets every token run once."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, hidden: torch.Tensor) -> ReusePlan:
        plan = self.inner(hidden)
        ones = torch.ones_like(plan.loop_count)
        probs = nn.functional.one_hot(ones - 1, 4).to(plan.lam)
        return dataclasses.replace(plan, loop_count=ones, loop_probs=probs)


class AlwaysOnce(nn.Module):
    """Somebody's controller, which knows nothing of ours."""

    def forward(self, hidden: torch.Tensor) -> ReusePlan:
        ones = torch.ones(hidden.shape[:-1], dtype=torch.long)
        probs = nn.functional.one_hot(ones - 1, 4).to(hidden)
        return ReusePlan(ones, probs, lam=torch.zeros_like(probs[..., 0]))


def swap(model, make):
    for layer in model.model.layers:
        layer.controller = make(layer.controller)


@pytest.mark.parametrize(
    "make",
    [Wrapping, lambda inner: Wrapping(Wrapping(inner)), lambda _: AlwaysOnce()],
    ids=["wrapped", "wrapped-twice", "replaced"],
)
def test_plans_follow_a_swapped_controller(make):
    """Asked before the swap and after it, of the model and of its base."""
    model, ids = make_model(), make_ids(2, 9)
    with torch.no_grad():
        before = model(ids, output_reuse_plans=True).reuse_plans
        swap(model, make)
        for forward in (model, model.model):
            plans = forward(ids, output_reuse_plans=True).reuse_plans
            assert len(plans) == 2
            assert all(torch.equal(plan.loop_count.unique(), ONCE) for plan in plans)
    assert any((plan.loop_count > 1).any() for plan in before)


def test_reported_plans_reproduce_the_hidden_states():
    """The plan of the first layer, carried out by hand, gives what the first layer gave."""
    model, ids = make_model(), make_ids(2, 9)
    swap(model, Wrapping)
    layer, states = model.model.layers[0], {}
    layer.self_attn.register_forward_hook(lambda _m, _i, out: states.update(attended=out[0]))
    layer.register_forward_hook(lambda _m, inputs, out: states.update(into=inputs[0], out=out))
    with torch.no_grad():
        plan = model(ids, output_reuse_plans=True).reuse_plans[0]
        hidden = states["into"] + states["attended"]
        update = run_masked(hidden.flatten(0, 1), layer.ffn_view(), plan.flatten().weights())
    torch.testing.assert_close(hidden + update.view_as(hidden), states["out"])


def test_the_temperature_reaches_every_controller():
    model = make_model()
    swap(model, lambda inner: Wrapping(Wrapping(inner)))
    model.set_tau(0.25)
    assert [m.tau for m in model.modules() if hasattr(m, "tau")] == [0.25, 0.25]
    swap(model, lambda _: AlwaysOnce())
    model.set_tau(0.5)
    assert model.config.tau == 0.5


def test_without_noise_training_decides_as_evaluation_does():
    model, ids = make_model(router_aux_loss_coef=0.0), make_ids(4, 33)

    def decided(training: bool) -> tuple[torch.Tensor, float]:
        out = model.train(training)(ids, labels=ids, output_reuse_plans=True)
        return torch.stack([plan.loop_count for plan in out.reuse_plans]), out.loss.item()

    loops, loss = decided(training=False)
    assert not torch.equal(decided(training=True)[0], loops)  # the paper's noise
    model.set_reuse_noise(False)
    quiet, quiet_loss = decided(training=True)
    assert torch.equal(quiet, loops)
    assert quiet_loss == pytest.approx(loss, rel=1e-6)  # a preference loss starts at ln 2
    model.set_reuse_noise(True)
    assert not torch.equal(decided(training=True)[0], loops)
    with pytest.raises(ConfigError, match="on='off' must be True or False"):
        model.set_reuse_noise("off")


@pytest.mark.parametrize("settings", VARIANTS.values(), ids=VARIANTS.keys())
def test_the_base_model_returns_what_it_is_asked_for(settings):
    model, ids = make_model(**settings).eval(), make_ids(2, 9)
    with torch.no_grad():
        plain = model.model(ids)
        asked = model.model(ids, output_router_logits=True, output_reuse_plans=True)
    assert plain.router_logits is None
    assert plain.reuse_plans is None
    assert torch.equal(asked.last_hidden_state, plain.last_hidden_state)
    routes = model.config.ffn().has_router
    assert (asked.router_logits is not None) == routes
    kind = Routing if settings["variant"] == "moe" else ReusePlan
    assert [type(decided) for decided in asked.reuse_plans] == [kind, kind]
    if routes:
        assert [logits.shape for logits in asked.router_logits] == [(18, 8), (18, 8)]
    assert isinstance(model.model(ids, return_dict=False), tuple)
    assert len(model.model(ids, output_hidden_states=True).hidden_states) == 3


@pytest.mark.parametrize("settings", VARIANTS.values(), ids=VARIANTS.keys())
def test_a_loss_from_outside_is_told_of_the_balance_loss(settings):
    """What trainers do that compute the loss from the base model's states: TRL's SFTTrainer."""
    model, ids = make_model(**settings).train(), make_ids(2, 9)
    routes = model.config.ffn().has_router
    if not routes:
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            model.model(ids)
        return
    for forward in (model, model.model):
        with pytest.warns(UserWarning, match="lacks the balance loss"):
            forward(ids)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        model(ids, labels=ids)
        out = model(ids, output_router_logits=True)
        model.eval()(ids)
    routers = [p for n, p in model.named_parameters() if ".router." in n]
    assert all(g.abs().max() > 0 for g in torch.autograd.grad(out.aux_loss, routers))


def test_the_base_model_refuses_a_balance_loss_without_a_gradient():
    model, ids = make_model(router_aux_loss_coef=1e-2).train(), make_ids(2, 9)
    model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": True})
    model.enable_input_require_grads()
    with pytest.raises(ConfigError, match="use_reentrant"):
        model.model(ids, output_router_logits=True, use_cache=False)


def test_recomputing_a_layer_reports_nothing_twice():
    model, ids = make_model().train(), make_ids(2, 9)
    model.gradient_checkpointing_enable()
    out = model.model(ids, output_reuse_plans=True, output_router_logits=True, use_cache=False)
    kept = (len(out.reuse_plans), len(out.router_logits))
    out.last_hidden_state.sum().backward()
    assert kept == (len(out.reuse_plans), len(out.router_logits)) == (2, 2)
