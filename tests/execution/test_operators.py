"""A compiled layer equals the eager one, in outputs and gradients, without a graph break."""

import pytest
import torch

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
from support.models import make_ids, make_model
from versatileffn.errors import ConfigError
from versatileffn.execution import operators
from versatileffn.execution.select import execute
from versatileffn.ffn import naive
from versatileffn.ffn.config import KLoop, Versatile

LAYERS = {
    "paper": ("swiglu", {}),
    "learned": ("fused-biases", {"reuse_gains": "learned"}),
    "depth": ("swiglu", {"fusion": "depth"}),
    "token-choice": ("swiglu", {"fusion": "depth", "controller": "token-choice"}),
    "one-loop": ("swiglu", {"max_loops": 1}),
    "unused-neurons": ("scale", {"num_experts": 3, "d_expert": 4}),
}
pytestmark = pytest.mark.filterwarnings("ignore:.*belong to no expert.*:UserWarning")


def calls(graph: torch.fx.GraphModule) -> list[str]:
    return [str(node.target) for node in graph.graph.nodes if node.op == "call_function"]


def compile_whole(function):
    """Compile without breaks, gradients included, and show what the graph calls."""
    graphs = []

    def look(graph, inputs):
        graphs.append(graph)
        from torch._dynamo.backends.debugging import aot_eager

        return aot_eager(graph, inputs)

    torch._dynamo.reset()
    return torch.compile(function, fullgraph=True, backend=look), graphs


layers = pytest.mark.parametrize(("form", "settings"), LAYERS.values(), ids=LAYERS)


@layers
def test_inference_in_a_graph_equals_algorithm_2(form, settings):
    layer = make_any(form, Versatile(**settings)).eval()
    compiled, graphs = compile_whole(lambda h: layer(h))
    with torch.no_grad():
        for tokens in (17, 17, 40):
            hidden = make_hidden(tokens, 16, seed=tokens)
            expected, _ = naive.infer(as_naive(layer), hidden)
            torch.testing.assert_close(compiled(hidden), expected, rtol=1e-10, atol=1e-10)
    assert graphs
    assert all(any("versatileffn.packed" in call for call in calls(graph)) for graph in graphs)


@layers
def test_training_in_a_graph_equals_algorithm_1(form, settings):
    layer, hidden = make_any(form, Versatile(**settings)), make_hidden(9, 16).requires_grad_()
    noise = None if "controller" in settings else gumbel(hidden, layer.config.loops)
    view = view_of(layer)

    def forward(hidden):
        update = execute(hidden, view, decide(layer, hidden, noise), "packed")
        return hidden + view.scale * update

    compiled, graphs = compile_whole(forward)
    results = []
    for output in (compiled(hidden), naive.train(as_naive(layer), hidden, noise)):
        inputs = [hidden, *layer.parameters()]
        grads = torch.autograd.grad(output.square().sum(), inputs, allow_unused=True)
        results.append([output, *grads])
    for ours, truth in zip(*results, strict=True):
        if truth is not None:
            torch.testing.assert_close(ours, truth, rtol=1e-9, atol=1e-9)
    assert any("packed_forward" in call for call in calls(graphs[0]))


@pytest.mark.parametrize("grad", [False, True])
def test_autocast_and_transposed_input_in_a_graph(grad):
    layer = make_layer(dtype=torch.float32).eval()
    hidden = make_hidden(16, 40, dtype=torch.float32)

    def forward(hidden):
        with torch.autocast("cpu", torch.bfloat16):
            return layer(hidden.T).hidden

    compiled, _ = compile_whole(forward)
    with torch.set_grad_enabled(grad):
        torch.testing.assert_close(compiled(hidden), forward(hidden), rtol=2e-2, atol=2e-2)
        plain, _ = compile_whole(lambda hidden: layer(hidden.T).hidden)
        torch.testing.assert_close(plain(hidden), layer(hidden.T).hidden)


MASKED = {
    "plain": make_any("plain-biases", Versatile()),
    "post-norm": make_any("sandwich", Versatile(reuse_gains="learned"), gains_at=0.4),
    "soft": make_any("swiglu", Versatile(loop_mix="soft")),
    "k-loop": make_any("swiglu", KLoop(3)),
}


@pytest.mark.parametrize("layer", MASKED.values(), ids=MASKED)
def test_what_no_operator_describes_is_masked(layer):
    layer, hidden = layer.eval(), make_hidden(9, 16)
    compiled, graphs = compile_whole(lambda h: layer(h))
    with torch.no_grad():
        torch.testing.assert_close(compiled(hidden), layer(hidden))
    assert not any("versatileffn" in call for call in calls(graphs[0]))


@pytest.mark.parametrize(("name", "reason"), [("plain", "SwiGLU"), ("post-norm", "of its own")])
def test_what_no_operator_describes_is_refused_where_it_was_asked_for(name, reason):
    view, plan = view_of(MASKED[name]), decide(MASKED[name], make_hidden(9, 16))

    def asked(hidden):
        return execute(hidden, view, plan, "packed")

    with pytest.raises(Exception, match=reason) as caught:
        compile_whole(asked)[0](make_hidden(9, 16))
    causes = [caught.value, caught.value.__cause__]
    assert any(isinstance(cause, ConfigError) or "ConfigError" in str(cause) for cause in causes)


@pytest.mark.parametrize("gains", ["fixed", "learned"])
def test_operators_keep_torchs_promises(gains):
    """torch's own checks: schema, fake kernel and autograd registration."""
    layer, hidden = make_layer(reuse_gains=gains, gains_at=0.3), make_hidden(6, 16)
    seen = {}
    for name in ("packed", "packed_forward"):
        operator = getattr(operators, name)
        original, tests = operator, ("test_schema", "test_faketensor", "test_autograd_registration")

        def spy(*arguments, name=name, original=original):
            seen[name] = arguments
            return original(*arguments)

        setattr(operators, name, spy)
        try:
            plan = decide(layer, hidden, gumbel(hidden, 4))
            with torch.set_grad_enabled(name == "packed_forward"):
                execute_with(operators.run_operator, layer, hidden, plan)
        finally:
            setattr(operators, name, original)
        arguments = [
            value.detach().requires_grad_(value.is_floating_point())
            if isinstance(value, torch.Tensor)
            else value
            for value in seen[name]
        ]
        torch.library.opcheck(original, tuple(arguments), test_utils=tests)


def test_a_compiled_model_trains_and_reads_like_the_eager_one():
    model, ids = make_model(variant="versatile"), make_ids(2, 12)
    compiled, _ = compile_whole(lambda ids: model(input_ids=ids, labels=ids, use_cache=False).loss)
    losses, grads = [], []
    for function in (compiled, lambda ids: model(input_ids=ids, labels=ids, use_cache=False).loss):
        model.zero_grad()
        loss = function(ids)
        loss.backward()
        losses.append(loss.detach())
        grads.append([p.grad.clone() for p in model.parameters() if p.grad is not None])
    torch.testing.assert_close(*losses, rtol=1e-5, atol=1e-6)
    for ours, eager in zip(*grads, strict=True):
        torch.testing.assert_close(ours, eager, rtol=1e-4, atol=1e-6)
