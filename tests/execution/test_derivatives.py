"""Derivatives that packed training doesn't have: refused where it would be asked for them, and
right where `masked` takes its place.

The truth is reverse mode through the masked executor, which `tests/parity` holds to Algorithm 1.
"""

import pytest
import torch
from torch.autograd import forward_ad

from support.layers import (
    as_naive,
    decide,
    execute_with,
    gumbel,
    make_any,
    make_hidden,
    make_layer,
    view_of,
)
from versatileffn.errors import ConfigError
from versatileffn.execution.masked import run_masked
from versatileffn.execution.operators import run_operator
from versatileffn.execution.packed_training import (
    run_packed_training,
    run_recomputed,
    run_stepwise_training,
)
from versatileffn.execution.select import execute
from versatileffn.ffn import naive
from versatileffn.ffn.config import Versatile

PACKED = {"keep": run_packed_training, "recompute": run_recomputed, "operator": run_operator}
packed = pytest.mark.parametrize("executor", PACKED.values(), ids=PACKED)


def scalar(executor, layer, execution=None):
    """From H to a sum, whose own gradient is constant: nothing but the layer has curvature."""
    noise = gumbel(make_hidden(9, 16), 4)

    def function(hidden):
        plan = decide(layer, hidden, noise)
        if execution is None:
            return execute_with(executor, layer, hidden, plan).sum()
        return (hidden + executor(hidden, view_of(layer), plan, execution)).sum()

    return function


def slope(function, layer, hidden):
    """Of the squared norm of the gradient in H, in a weight: what a gradient penalty trains."""
    hidden = hidden.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(function(hidden), hidden, create_graph=True)
    return torch.autograd.grad(gradient.square().sum(), view_of(layer).proj[0].weight)[0]


@packed
@pytest.mark.parametrize("compiled", [False, True], ids=["eager", "compiled"])
def test_second_derivatives_are_refused(executor, compiled):
    refuses(executor, make_layer(reuse_gains="learned"), compiled)


def test_second_derivatives_are_refused_where_nothing_merges():
    refuses(run_stepwise_training, make_any("sandwich", Versatile(reuse_gains="learned")))


def refuses(executor, layer, compiled=False):
    hidden, function = make_hidden(9, 16), scalar(executor, layer)
    if compiled:
        torch._dynamo.reset()
        function = torch.compile(function, backend="eager")
    ones = torch.ones_like(hidden)
    with pytest.raises(ConfigError, match=r"set_execution\('masked'\)"):
        torch.autograd.functional.hvp(function, hidden, ones)
    with pytest.raises(ConfigError, match=r"set_execution\('masked'\)"):
        slope(function, layer, hidden)
    with pytest.raises(ConfigError, match=r"set_execution\('masked'\)"):
        torch.autograd.functional.jvp(function, hidden, ones)


@packed
def test_a_graph_of_the_gradient_alone_is_no_second_derivative(executor):
    """`create_graph` without differentiating again gives the gradient, as ever."""
    layer = make_layer()
    gradients = []
    for run, graph in ((run_masked, False), (executor, True)):
        hidden = make_hidden(9, 16).requires_grad_()
        output = scalar(run, layer)(hidden)
        gradients.append(torch.autograd.grad(output, hidden, create_graph=graph)[0])
    torch.testing.assert_close(gradients[1], gradients[0], rtol=1e-10, atol=1e-10)
    assert gradients[1].requires_grad


def test_masked_has_the_second_derivatives_of_algorithm_1():
    layer, hidden = make_layer(reuse_gains="learned"), make_hidden(9, 16)
    masked, weights, ones = scalar(run_masked, layer), as_naive(layer), torch.ones_like(hidden)

    def algorithm_1(hidden):
        return naive.train(weights, hidden, gumbel(hidden, 4)).sum()

    _, expected = torch.autograd.functional.hvp(algorithm_1, hidden, ones)
    _, found = torch.autograd.functional.hvp(masked, hidden, ones)
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-9)
    found, expected = (slope(function, layer, hidden) for function in (masked, algorithm_1))
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-9)
    assert expected.abs().max() > 1


def test_torch_func_has_second_derivatives():
    layer, hidden = make_layer(), make_hidden(3, 16)
    noise = gumbel(hidden, 4)

    def function(execution):
        return lambda hidden: execute(
            hidden, view_of(layer), decide(layer, hidden, noise), execution
        ).sum()

    expected = torch.autograd.functional.hessian(function("masked"), hidden)
    torch.testing.assert_close(torch.func.hessian(function("auto"))(hidden), expected)


def push_forward(function, hidden, tangent):
    return torch.func.jvp(function, (hidden,), (tangent,))[1]


def dual_number(function, hidden, tangent):
    with forward_ad.dual_level():
        moved = function(forward_ad.make_dual(hidden, tangent))
        return forward_ad.unpack_dual(moved).tangent


def compiled_inside(function, hidden, tangent):
    torch._dynamo.reset()
    whole = torch.compile(
        lambda h: push_forward(function, h, tangent), fullgraph=True, backend="aot_eager"
    )
    return whole(hidden)


def compiled_under_dual_numbers(function, hidden, tangent):
    torch._dynamo.reset()
    return dual_number(torch.compile(function, backend="eager"), hidden, tangent)


@pytest.mark.parametrize("grad", [True, False], ids=["grad", "no-grad"])
@pytest.mark.parametrize("execution", ["auto", "triton"])
@pytest.mark.parametrize(
    "forward", [push_forward, dual_number, compiled_inside, compiled_under_dual_numbers]
)
def test_forward_mode_has_the_straight_through_term(forward, execution, grad):
    """⟨∇f, t⟩ by reverse mode equals the directional derivative, the gradient of p included."""
    layer, hidden, tangent = make_layer(), make_hidden(9, 16), make_hidden(9, 16, seed=5)
    leaf = hidden.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(scalar(run_masked, layer)(leaf), leaf)
    with torch.set_grad_enabled(grad):
        found = forward(scalar(execute, layer, execution), hidden, tangent)
    torch.testing.assert_close(found, (gradient * tangent).sum(), rtol=1e-10, atol=1e-10)


def test_packed_is_refused_in_forward_mode():
    layer, hidden = make_layer(), make_hidden(9, 16)
    with pytest.raises(ConfigError, match=r"torch\.func"):
        push_forward(scalar(execute, layer, "packed"), hidden, torch.ones_like(hidden))
