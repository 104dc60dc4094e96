"""A compiled layer equals the eager one, in outputs and gradients, without a graph break."""

import pytest
import torch

from support.layers import as_naive, gumbel, make_hidden, make_layer
from versatileffn.execution import operators
from versatileffn.ffn import naive
from versatileffn.models.llama import VersatileLlamaConfig, VersatileLlamaForCausalLM

VARIANTS = {
    "paper": {},
    "learned": {"reuse_gains": "learned"},
    "depth": {"fusion": "depth"},
    "one-loop": {"max_loops": 1},
    "unused-neurons": {"num_experts": 3, "d_expert": 4},
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


@pytest.mark.parametrize("settings", VARIANTS.values(), ids=VARIANTS.keys())
def test_inference_in_a_graph_equals_algorithm_2(settings):
    layer = make_layer(**settings).eval()
    compiled, graphs = compile_whole(lambda h: layer(h).hidden)
    with torch.no_grad():
        for tokens in (17, 17, 40):
            hidden = make_hidden(tokens, 16, seed=tokens)
            expected, _ = naive.infer(as_naive(layer), hidden)
            torch.testing.assert_close(compiled(hidden), expected, rtol=1e-10, atol=1e-10)
    assert graphs
    assert all(any("versatileffn.packed" in call for call in calls(graph)) for graph in graphs)


@pytest.mark.parametrize("settings", VARIANTS.values(), ids=VARIANTS.keys())
def test_training_in_a_graph_equals_algorithm_1(settings):
    layer, hidden = make_layer(**settings), make_hidden(9, 16).requires_grad_()
    noise = gumbel(hidden, layer.config.max_loops)

    def forward(hidden):
        plan = layer.controller(hidden, gumbel_noise=noise)
        return layer(hidden, plan).hidden

    # plan.check() looks at values, which a graph can't
    layer.forward = lambda h, plan: _versatile(layer, h, plan)
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


def _versatile(layer, hidden, plan):
    from versatileffn.ffn.dense import FFNOutput
    from versatileffn.ffn.versatile import versatile

    new_hidden, plan = versatile(
        hidden, layer.norm, layer.mlp, layer.controller, layer.config, plan
    )
    return FFNOutput(new_hidden, None, plan)


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


@pytest.mark.parametrize("settings", [{"gated": False}, {"bias": True}, {"loop_mix": "soft"}])
def test_what_no_operator_describes_is_masked(settings):
    layer, hidden = make_layer(**settings).eval(), make_hidden(9, 16)
    compiled, graphs = compile_whole(lambda h: layer(h).hidden)
    with torch.no_grad():
        torch.testing.assert_close(compiled(hidden), layer(hidden).hidden)
    assert not any("versatileffn" in call for call in calls(graphs[0]))


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
            plan = layer.controller(hidden, gumbel(hidden, 4))
            with torch.set_grad_enabled(name == "packed_forward"):
                operators.run_operator(hidden, layer.norm, layer.mlp, plan)
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
    config = VersatileLlamaConfig(
        hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=2,
        vocab_size=64, max_position_embeddings=64,
    )  # fmt: skip
    torch.manual_seed(0)
    model = VersatileLlamaForCausalLM(config).eval()
    ids = torch.randint(0, 64, (2, 12))
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
