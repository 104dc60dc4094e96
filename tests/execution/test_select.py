import pickle

import pytest
import torch

from support.layers import make_hidden, make_layer
from versatileffn.errors import ConfigError
from versatileffn.execution.masked import run_masked
from versatileffn.execution.order import count_active
from versatileffn.execution.packed import run_packed
from versatileffn.execution.packed_training import run_packed_training, run_recomputed
from versatileffn.execution.select import select_executor
from versatileffn.ffn.dense import ACTIVATIONS, hidden_activations


def plan_of(**settings):
    return make_layer(**settings).eval().controller(make_hidden(6, 16))


def chosen(execution, plan, **settings):
    layer = make_layer(**settings)
    return select_executor(execution, plan, layer.norm, layer.mlp)


@pytest.mark.parametrize("execution", ["auto", "packed", "recompute"])
def test_hard_plans_are_packed(execution):
    training = run_recomputed if execution == "recompute" else run_packed_training
    assert chosen(execution, plan_of()) is training
    with torch.no_grad():
        assert chosen(execution, plan_of()) is run_packed
        assert chosen(execution, plan_of(), bias=True) is run_packed


def test_masked_and_soft_plans_are_masked():
    for plan, execution in ((plan_of(loop_mix="soft"), "auto"), (plan_of(), "masked")):
        assert chosen(execution, plan) is run_masked
        with torch.no_grad():
            assert chosen(execution, plan) is run_masked


def hook(layer):
    layer.mlp.up_proj.register_forward_hook(lambda *_: None)


def replaced_forward(layer):
    layer.mlp.down_proj.forward = torch.nn.Linear(32, 16).forward


def parametrized(layer):
    torch.nn.utils.parametrizations.weight_norm(layer.mlp.up_proj)


def subclass(layer):
    layer.mlp.up_proj = type("Adapted", (torch.nn.Linear,), {})(16, 32, bias=False)


def backward_hook(layer):
    layer.mlp.up_proj.register_full_backward_pre_hook(lambda *_: None)


@pytest.mark.parametrize("wrap", [hook, backward_hook, replaced_forward, parametrized, subclass])
def test_training_reads_weights_only_where_they_are_plain(wrap):
    layer = make_layer()
    assert select_executor("auto", plan_of(), layer.norm, layer.mlp) is run_packed_training
    wrap(layer)
    assert select_executor("auto", plan_of(), layer.norm, layer.mlp) is run_masked
    with pytest.raises(ConfigError, match="adapters"):
        select_executor("packed", plan_of(), layer.norm, layer.mlp)
    assert chosen("auto", plan_of(), bias=True) is run_masked


def test_packed_is_refused_where_it_is_invalid():
    with torch.no_grad(), pytest.raises(ConfigError, match="loop_mix='hard'"):
        make_layer(execution="packed", loop_mix="soft")(make_hidden(4, 16))
    with pytest.raises(ValueError, match="soft plan"):
        run_packed(make_hidden(6, 16), None, None, plan_of(loop_mix="soft"))


def test_packed_does_exactly_the_planned_work():
    """Rows through W_proj and through W_out, counted at the linears: Σ ℓ̂ of each."""
    layer, hidden = make_layer().eval(), make_hidden(50, 16)
    rows = {"up": 0, "down": 0}
    for name, linear in (("up", layer.mlp.up_proj), ("down", layer.mlp.down_proj)):
        linear.register_forward_hook(
            lambda _m, inputs, _o, name=name: rows.__setitem__(
                name, rows[name] + inputs[0].shape[0]
            )
        )
    with torch.no_grad():
        plan = layer(hidden).plan
    planned = plan.loop_count.sum().item()
    assert rows == {"up": planned, "down": planned}
    assert sum(count_active(plan.loop_count, plan.max_loops)()) == planned
    assert 50 < planned < 200


@pytest.mark.parametrize("executor", [run_masked, run_packed])
def test_hidden_states_are_left_as_they_were(executor):
    layer, hidden = make_layer(bias=True, reuse_gains="learned").eval(), make_hidden(20, 16)
    before = hidden.clone()
    with torch.no_grad():
        executor(hidden, layer.norm, layer.mlp, layer.controller(hidden))
    assert torch.equal(hidden, before)


def test_adapters_take_part():
    """The linears are called, so a hook (an adapter, a quantized product) changes the result."""
    layer, hidden = make_layer().eval(), make_hidden(6, 16)
    with torch.no_grad():
        before = layer(hidden).hidden
        layer.mlp.down_proj.register_forward_hook(lambda _m, _i, out: out * 2)
        assert not torch.allclose(layer(hidden).hidden, before)
        a = hidden_activations(layer.mlp, hidden)
    torch.testing.assert_close(
        a, layer.mlp.act_fn(layer.mlp.gate_proj(hidden)) * layer.mlp.up_proj(hidden)
    )


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


def test_kernels_are_refused_where_there_is_no_gpu_and_training_goes_on():
    layer, hidden = make_layer(execution="triton"), make_hidden(4, 16)
    with torch.no_grad(), pytest.raises(ConfigError, match=r"CUDA|Triton isn't installed"):
        layer(hidden)
    layer(hidden).hidden.sum().backward()
    assert layer.mlp.up_proj.weight.grad.abs().max() > 0


def test_functional_transforms_are_masked():
    layer, hidden = make_layer().eval(), make_hidden(6, 16)
    weights = {name: weight.detach() for name, weight in layer.named_parameters()}

    def loss(weights):
        output = torch.func.functional_call(layer, weights, (hidden, layer.controller(hidden)))
        return output.hidden.square().sum()

    layer.forward = lambda h, plan: _executed(layer, h, plan)
    grads = torch.func.grad(loss)(weights)
    loss({name: weight.requires_grad_() for name, weight in weights.items()}).backward()
    torch.testing.assert_close(grads["mlp.up_proj.weight"], weights["mlp.up_proj.weight"].grad)


def _executed(layer, hidden, plan):
    from versatileffn.execution.select import execute
    from versatileffn.ffn.dense import FFNOutput

    return FFNOutput(execute(hidden, layer.norm, layer.mlp, plan))
