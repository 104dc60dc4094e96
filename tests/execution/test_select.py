"""Which executor is chosen, why, and who is told; and that each does the planned work alone."""

import logging
import pickle

import pytest
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from support.layers import decide, execute_with, make_any, make_hidden, make_layer, view_of
from versatileffn.errors import ConfigError, PlanError
from versatileffn.execution.masked import run_masked
from versatileffn.execution.order import count_active
from versatileffn.execution.packed import run_packed
from versatileffn.execution.packed_training import run_packed_training, run_stepwise_training
from versatileffn.execution.select import (
    execute,
    execution_choices,
    forget_choices,
    select_executor,
)
from versatileffn.execution.stepwise import run_stepwise
from versatileffn.ffn.config import Dense, KLoop, Versatile
from versatileffn.ffn.mlp import ACTIVATIONS
from versatileffn.ffn.view import FFNView


@pytest.fixture(autouse=True)
def new_record():
    forget_choices()


def chosen(execution="auto", layer=None, **settings):
    layer = make_layer(**settings) if layer is None else layer
    hidden = make_hidden(6, 16)
    return select_executor(execution, hidden, view_of(layer), decide(layer, hidden).weights())


def name_of(execution="auto", layer=None, **settings):
    return chosen(execution, layer, **settings).name


@pytest.mark.parametrize("execution", ["auto", "packed", "recompute"])
@pytest.mark.parametrize("form", ["swiglu", "fused", "layer-norm", "plain-biases", "scale"])
def test_hard_plans_are_packed(form, execution):
    layer = make_any(form, Versatile())
    training = "recomputed" if execution == "recompute" else "packed_training"
    assert name_of(execution, layer) == training
    with torch.no_grad():
        assert name_of(execution, layer) == "packed"


@pytest.mark.parametrize("execution", ["auto", "packed", "recompute"])
@pytest.mark.parametrize(
    ("form", "config"), [("post-norm", Versatile()), ("swiglu", Versatile(loop_rank=2))]
)
def test_what_does_not_merge_goes_loop_by_loop(form, config, execution):
    layer = make_any(form, config)
    assert name_of(execution, layer) == "stepwise_training"
    with torch.no_grad():
        choice = chosen(execution, layer)
    assert (choice.name, choice.fallback) == ("stepwise", False)
    assert "down-projection of its own" in choice.reason


def test_masked_and_soft_plans_are_masked():
    for execution, settings in (("auto", {"loop_mix": "soft"}), ("masked", {})):
        for grad in (True, False):
            with torch.set_grad_enabled(grad):
                choice = chosen(execution, **settings)
                assert (choice.name, choice.fallback) == ("masked", False)


@pytest.mark.parametrize("config", [Dense(), KLoop(3)], ids=str)
def test_where_all_tokens_are_alike_nothing_is_masked_and_every_mode_is_there(config):
    layer = make_any("swiglu", config)
    assert "nothing to mask" in chosen("auto", layer).reason
    assert name_of("packed", layer) == "packed_training"
    assert name_of("recompute", layer) == "recomputed"
    hidden = make_hidden(9, 16)
    with FlopCounterMode(display=False) as counter:
        layer(hidden)
    assert counter.get_total_flops() == 9 * config.loops * 3 * 2 * 16 * 32


def hook(layer):
    layer.mlp.up_proj.register_forward_hook(lambda *_: None)


def replaced_forward(layer):
    layer.mlp.down_proj.forward = nn.Linear(32, 16).forward


def parametrized(layer):
    nn.utils.parametrizations.weight_norm(layer.mlp.up_proj)


def subclass(layer):
    layer.mlp.up_proj = type("Adapted", (nn.Linear,), {})(16, 32, bias=False).double()


def backward_hook(layer):
    layer.mlp.up_proj.register_full_backward_pre_hook(lambda *_: None)


WRAPPED = [hook, backward_hook, replaced_forward, parametrized, subclass]


@pytest.mark.parametrize("wrap", WRAPPED)
def test_training_reads_weights_only_where_they_are_plain(wrap):
    layer = make_layer()
    assert name_of("auto", layer) == "packed_training"
    wrap(layer)
    choice = chosen("auto", layer)
    assert choice.name == "masked"
    assert choice.fallback
    with pytest.raises(ConfigError, match=r"adapters.*use execution='auto'"):
        chosen("packed", layer)


def test_a_norm_that_is_no_module_is_called():
    layer = make_layer()
    view = view_of(layer)
    closed_over = FFNView(lambda x: layer.norm(x), view.proj, view.act, view.down)
    weights = decide(layer, make_hidden(6, 16)).weights()
    choice = select_executor("auto", make_hidden(6, 16), closed_over, weights)
    assert choice.name == "masked"
    assert "norm" in choice.reason


def test_packed_is_refused_where_it_is_invalid():
    layer = make_layer(execution="packed", loop_mix="soft")
    with torch.no_grad(), pytest.raises(ConfigError, match="loop_mix='hard'"):
        layer(make_hidden(4, 16))
    for run in (run_packed, run_packed_training, run_stepwise, run_stepwise_training):
        with pytest.raises(PlanError, match="soft plan"):
            execute_with(run, layer, make_hidden(4, 16), decide(layer, make_hidden(4, 16)))


def test_a_fallback_is_said_once_and_all_choices_are_recorded(caplog):
    layer, hidden = make_layer(), make_hidden(6, 16)
    hook(layer)
    with caplog.at_level(logging.WARNING):
        for _ in range(3):
            layer(hidden)
            with torch.no_grad():
                layer(hidden)
    assert len(caplog.records) == 1
    assert "falls back to 'masked': in training, a linear map isn't a plain" in caplog.text
    names = [choice["executor"] for choice in execution_choices()]
    assert names == ["masked", "packed"]
    assert all(choice["reason"] for choice in execution_choices())


@pytest.mark.parametrize("settings", [{}, {"loop_mix": "soft"}, {"config": KLoop(3)}], ids=str)
def test_what_was_to_be_expected_is_recorded_and_not_said(settings, caplog):
    with caplog.at_level(logging.WARNING):
        make_layer(**settings)(make_hidden(6, 16))
    assert not caplog.records
    assert len(execution_choices()) == 1


@pytest.mark.parametrize(
    ("activation", "executor", "said"),
    [("silu", "operator", ""), ("gelu", "masked", "under torch.compile, φ isn't SwiGLU")],
)
def test_what_a_compiled_graph_takes_is_recorded_and_said(activation, executor, said, caplog):
    layer = make_layer(activation=activation).eval()
    torch._dynamo.reset()
    compiled = torch.compile(lambda h: layer(h).hidden, fullgraph=True, backend="eager")
    with torch.no_grad(), caplog.at_level(logging.WARNING):
        for _ in range(2):
            compiled(make_hidden(6, 16))
    assert [choice["executor"] for choice in execution_choices()] == [executor]
    assert [record.getMessage() for record in caplog.records] == (
        [f"execution='auto' falls back to 'masked': {said}"] if said else []
    )


class Counted:
    """Rows that pass through linear maps."""

    def __init__(self, *linears):
        self.rows = [0] * len(linears)
        for index, linear in enumerate(linears):
            linear.register_forward_hook(lambda _m, x, _o, i=index: self.add(i, x[0].shape[0]))

    def add(self, index, rows):
        self.rows[index] += rows


def test_packed_does_exactly_the_planned_work():
    """Rows through W_proj and through W_out, counted at the linears: Σ ℓ̂ of each."""
    layer, hidden = make_layer().eval(), make_hidden(50, 16)
    counted = Counted(layer.mlp.up_proj, layer.mlp.down_proj)
    with torch.no_grad():
        plan = layer(hidden).plan
    planned = plan.loop_count.sum().item()
    assert counted.rows == [planned, planned]
    assert sum(count_active(plan.loop_count, plan.max_loops)()) == planned
    assert 50 < planned < 200


@pytest.mark.parametrize("form", ["swiglu", "fused-biases"])
def test_at_inference_one_product_a_loop_serves_who_leaves_and_who_stays(form):
    """W_out is called once for each loop that runs, on the tokens that run it, and not again."""
    layer, hidden, rows = make_any(form, Versatile()).eval(), make_hidden(50, 16), []
    layer.down.register_forward_hook(lambda _m, x, _o: rows.append(len(x[0])))
    with torch.no_grad():
        plan = decide(layer, hidden)
        execute_with(run_packed, layer, hidden, plan)
        running = [int((plan.loop_count >= loop).sum()) for loop in range(1, 5)]
        assert rows == running
        assert running[0] > running[1] > running[2] > running[3] > 0
        rows.clear()
        twice = plan.with_loops(torch.full_like(plan.loop_count, 2))
        execute_with(run_packed, layer, hidden, twice)
    assert rows == [50, 50]


@pytest.mark.parametrize("gain", [0.0, 0.5])
def test_the_width_pathway_costs_nothing_while_its_gain_is_zero(gain):
    """Where a norm follows W_out: Σ ℓ̂ down-projections, and one for each token with λs ≠ 0."""
    layer = make_any("post-norm", Versatile(reuse_gains="learned"), gains_at=gain).eval()
    hidden, counted = make_hidden(50, 16), Counted(layer.proj[0], layer.down)
    with torch.no_grad():
        plan = decide(layer, hidden)
        layer(hidden, plan)
    planned, routed = plan.loop_count.sum().item(), int((plan.lam * gain != 0).sum())
    assert counted.rows == [planned, planned + routed]
    assert (routed > 10) == (gain > 0)


def test_where_p_has_no_gradient_training_runs_the_planned_loops_alone():
    """Token choice: one dense forward for each loop, and two for its gradient."""
    config = Versatile(fusion="depth", controller="token-choice")
    layer, hidden = make_any("swiglu", config), make_hidden(50, 16).requires_grad_()
    plan = decide(layer, hidden)
    with FlopCounterMode(display=False) as counter:
        execute_with(run_packed_training, layer, hidden, plan).sum().backward()
    unit, planned = 2 * 16 * 32, plan.loop_count.sum().item()
    assert 50 < planned < 200
    # The router's gradient, two products, is none of the FFN's. v = W_outᵀG stands for the
    # gradient of each token's last down-projection.
    assert counter.get_total_flops() == 3 * 3 * planned * unit + 2 * 2 * 50 * 16 * 4


@pytest.mark.parametrize("run", [run_masked, run_packed])
@pytest.mark.parametrize("form", ["swiglu", "fused-biases"])
def test_hidden_states_are_left_as_they_were(form, run):
    layer, hidden = make_any(form, Versatile(reuse_gains="learned")).eval(), make_hidden(20, 16)
    before = hidden.clone()
    with torch.no_grad():
        execute_with(run, layer, hidden, decide(layer, hidden))
    assert torch.equal(hidden, before)


@pytest.mark.parametrize("form", ["swiglu", "sandwich"])
def test_adapters_take_part(form):
    """The linears are called, so a hook (an adapter, a quantized product) changes the result."""
    layer, hidden = make_any(form, Versatile()).eval(), make_hidden(6, 16)
    with torch.no_grad():
        before = layer(hidden)
        layer.proj[0].register_forward_hook(lambda _m, _i, out: out * 2)
        assert not torch.allclose(layer(hidden), before)


def test_what_a_hook_keeps_is_not_written_to():
    layer, hidden, kept = make_any("plain-biases", Versatile()).eval(), make_hidden(9, 16), []
    layer.form = type(layer.form)(gated=False, bias=True, act=nn.Identity())
    for linear in (layer.proj[0], layer.down):
        linear.register_forward_hook(lambda _m, x, out: kept.append((x[0], out)))
    with torch.no_grad():
        layer(hidden)
        for linear in (layer.proj[0], layer.down):
            linear._forward_hooks.clear()
        for x, out in kept:
            linear = layer.proj[0] if x.shape[-1] == 16 else layer.down
            torch.testing.assert_close(linear(x), out)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_tracing_does_not_bake_the_routing_in():
    layer = make_layer(dtype=torch.float32).eval().requires_grad_(False)
    first, second = (make_hidden(6, 16, dtype=torch.float32, seed=s) for s in (1, 2))
    with torch.no_grad():
        traced = torch.jit.trace(lambda h: layer(h).hidden, first, check_trace=False)
        torch.testing.assert_close(traced(second), layer(second).hidden)


def test_a_detached_plan_still_lets_gradients_through():
    layer, hidden = make_layer().eval(), make_hidden(6, 16).requires_grad_()
    with torch.no_grad():
        plan = layer.controller(hidden)
    layer(hidden, plan).hidden.sum().backward()
    assert hidden.grad.abs().min() > 0


def test_layers_of_every_activation_can_be_copied():
    for activation in ACTIVATIONS:
        layer = make_layer(activation=activation)
        clone = pickle.loads(pickle.dumps(layer))
        hidden = make_hidden(6, 16)
        with torch.no_grad():
            assert torch.equal(clone.eval()(hidden).hidden, layer.eval()(hidden).hidden)


def test_kernels_are_refused_where_there_is_no_gpu_and_training_goes_on(caplog):
    layer, hidden = make_layer(execution="triton"), make_hidden(4, 16)
    with torch.no_grad(), pytest.raises(ConfigError, match=r"CUDA|Triton isn't installed"):
        layer(hidden)
    with caplog.at_level(logging.WARNING):
        layer(hidden).hidden.sum().backward()
    assert "the kernels have no gradients" in caplog.text
    assert layer.mlp.up_proj.weight.grad.abs().max() > 0


def test_functional_transforms_are_masked(caplog):
    layer, hidden = make_layer().eval(), make_hidden(6, 16)
    weights = {name: weight.detach() for name, weight in layer.named_parameters()}
    layer.forward = lambda h: execute(h, view_of(layer), decide(layer, h))

    def loss(weights):
        return torch.func.functional_call(layer, weights, (hidden,)).square().sum()

    with caplog.at_level(logging.WARNING):
        grads = torch.func.grad(loss)(weights)
    assert "torch.func" in caplog.text
    loss({name: weight.requires_grad_() for name, weight in weights.items()}).backward()
    torch.testing.assert_close(grads["mlp.up_proj.weight"], weights["mlp.up_proj.weight"].grad)
