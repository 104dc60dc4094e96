"""What autograd, functional calls and unusual layers may expect of packed training."""

import dataclasses
import gc

import pytest
import torch
from torch import nn
from torch.func import functional_call

from support.layers import decide, execute_with, gumbel, make_hidden, make_layer, view_of
from versatileffn.execution.masked import run_masked
from versatileffn.execution.packed import run_packed
from versatileffn.execution.packed_training import (
    run_packed_training,
    run_recomputed,
    run_stepwise_training,
)
from versatileffn.execution.select import select_executor
from versatileffn.layer import VersatileFFN

PACKED = {
    "keep": run_packed_training,
    "recompute": run_recomputed,
    "stepwise": run_stepwise_training,
}
every_pass = pytest.mark.parametrize("packed", PACKED.values(), ids=PACKED)


def gradients(executor, layer, hidden, plan_of=None, autocast=False):
    plan = decide(layer, hidden, gumbel(hidden, 4)) if plan_of is None else plan_of(hidden)
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        output = execute_with(executor, layer, hidden, plan)
    inputs = [hidden, *(p for p in layer.parameters() if p.requires_grad)]
    loss = output.float().square().sum() if autocast else output.square().sum()
    return [output, *torch.autograd.grad(loss, inputs, allow_unused=True)]


def same(ours, truth, rtol=1e-9):
    for one, other in zip(ours, truth, strict=True):
        if other is not None:
            torch.testing.assert_close(one, other, rtol=rtol, atol=rtol)


class NormWithLinear(nn.Module):
    """A norm that multiplies matrices and has a weight that it doesn't use."""

    def __init__(self, d_model: int) -> None:
        super().__init__()
        self.mix, self.unused = nn.Linear(d_model, d_model), nn.Parameter(torch.ones(3))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.tanh(self.mix(x))


@every_pass
@pytest.mark.parametrize("norm", [nn.LayerNorm(16), NormWithLinear(16), nn.RMSNorm(16)])
def test_any_norm(packed, norm):
    layer, hidden = make_layer(), make_hidden(9, 16).requires_grad_()
    layer.norm = norm.double()
    same(gradients(packed, layer, hidden), gradients(run_masked, layer, hidden))


@every_pass
def test_a_norm_with_a_product_under_autocast(packed):
    layer = make_layer(dtype=torch.float32)
    layer.norm = NormWithLinear(16)
    hidden = make_hidden(40, 16, dtype=torch.float32).requires_grad_()
    found = [gradients(e, layer, hidden, autocast=True) for e in (run_masked, packed)]
    for masked, ours in zip(*found, strict=True):
        if masked is not None:
            assert (ours - masked).norm() <= 5e-2 * masked.norm() + 1e-6


class LearnedActivation(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.slope = nn.Parameter(torch.tensor(0.7, dtype=torch.float64))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.slope * torch.tanh(x)


@pytest.mark.parametrize("execution", ["auto", "packed", "recompute"])
def test_an_activation_with_weights_learns(execution):
    """It is differentiated loop by loop, whichever mode was asked for."""
    layer, hidden = make_layer(bias=True), make_hidden(9, 16).requires_grad_()
    layer.mlp.act_fn = LearnedActivation()
    weights = decide(layer, hidden).weights()
    choice = select_executor(execution, hidden, view_of(layer), weights)
    assert (choice.name, choice.reason) == ("stepwise_training", "φ has weights of its own")
    expected = gradients(run_masked, layer, hidden)
    same(gradients(choice.run, layer, hidden), expected)
    slope = [name for name, _ in layer.named_parameters()].index("mlp.act_fn.slope")
    assert expected[2 + slope].abs() > 0.1


@every_pass
def test_no_tokens(packed):
    layer, hidden = make_layer(reuse_gains="learned"), make_hidden(0, 16).requires_grad_()
    for grad in gradients(packed, layer, hidden):
        assert grad is not None
        assert not grad.abs().sum()


@every_pass
@pytest.mark.parametrize("norm", [None, nn.LayerNorm(16)])
def test_other_weights_by_functional_call(packed, norm):
    """The backward pass uses the weights of the call, not those that the modules have by then."""
    layer, hidden = make_layer(), make_hidden(9, 16)
    layer.norm = layer.norm if norm is None else norm.double()
    other = {n: (p.detach() * 1.5).requires_grad_() for n, p in layer.named_parameters()}
    grads = []
    for executor in (run_masked, packed):
        layer.forward = lambda h, run=executor: execute_with(
            run, layer, h, decide(layer, h, gumbel(h, 4))
        )
        output = functional_call(layer, other, (hidden,))
        grads.append(torch.autograd.grad(output.square().sum(), list(other.values())))
    same(*grads)


@every_pass
def test_graphs_can_be_kept_and_run_again(packed):
    layer, hidden = make_layer(), make_hidden(9, 16).requires_grad_()
    output = execute_with(packed, layer, hidden, decide(layer, hidden, gumbel(hidden, 4)))
    first = torch.autograd.grad(output.sum(), layer.mlp.up_proj.weight, retain_graph=True)
    second = torch.autograd.grad(output.sum(), layer.mlp.up_proj.weight)
    same(first, second)
    with pytest.raises(RuntimeError, match="second time"):
        torch.autograd.grad(output.sum(), layer.mlp.up_proj.weight)


@every_pass
@pytest.mark.parametrize("name", ["norm.weight", "mlp.down_proj.weight"])
def test_weights_changed_before_the_backward_pass_are_noticed(packed, name):
    layer, hidden = make_layer(), make_hidden(9, 16).requires_grad_()
    output = execute_with(packed, layer, hidden, decide(layer, hidden, gumbel(hidden, 4)))
    with torch.no_grad():
        layer.get_parameter(name).mul_(2)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        output.sum().backward()


@every_pass
def test_what_was_saved_is_gone_after_the_backward_pass(packed):
    """The output keeps the graph alive, and the graph must not keep tensors of its own."""
    layer = VersatileFFN(32, 128)
    hidden = make_hidden(64, 32, dtype=torch.float32).requires_grad_()
    before = live_bytes()
    with torch.autocast("cpu", torch.bfloat16):
        plan = decide(layer, hidden, gumbel(hidden, 4))
        output = execute_with(packed, layer, hidden, plan)
    del plan
    during = live_bytes() - before
    output.sum().backward()
    layer.zero_grad(set_to_none=True)
    hidden.grad = None
    left = live_bytes() - before - output.untyped_storage().nbytes()
    assert left < 0.05 * during
    del output


def live_bytes() -> int:
    """Of all real tensors that Python knows of; other tests may have left fake ones."""
    gc.collect()
    storages = {}
    for thing in gc.get_objects():
        if type(thing) in (torch.Tensor, nn.Parameter) and thing.device.type == "cpu":
            storage = thing.untyped_storage()
            storages[storage._cdata] = storage.nbytes()
    return sum(storages.values())


@every_pass
def test_a_first_gain_other_than_one(packed):
    """σ·W_out a₁ is free of γ₁."""
    layer, hidden = make_layer(reuse_gains="learned", gains_at=0.3), make_hidden(9, 16)
    gains = torch.tensor([0.5, 2.0, 0.0, -1.0], dtype=torch.float64)

    def plan_of(hidden):
        plan = decide(layer, hidden, gumbel(hidden, 4))
        return dataclasses.replace(plan, loop_gains=gains)

    hidden.requires_grad_()
    expected = gradients(run_masked, layer, hidden, plan_of)
    same(gradients(packed, layer, hidden, plan_of), expected)
    with torch.no_grad():
        inference = execute_with(run_packed, layer, hidden, plan_of(hidden))
    torch.testing.assert_close(inference, expected[0].detach())
