"""How the kernels are launched: the order, the work, no waiting, graphs, the operator."""

import dataclasses

import pytest
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode
from transformers.models.llama.modeling_llama import LlamaRMSNorm

from support.layers import decide, make_any, make_hidden, make_layer, view_of
from versatileffn.execution.kernels import custom_op
from versatileffn.execution.kernels.custom_op import reuse_forward, run_triton
from versatileffn.execution.kernels.support import unsupported
from versatileffn.execution.packed import run_packed
from versatileffn.ffn.config import Versatile


@pytest.mark.parametrize("num_tokens", [1, 5, 1024, 2500])
@pytest.mark.parametrize("max_loops", [1, 4])
def test_the_order_is_a_stable_sort(num_tokens, max_loops, device, poison):
    from versatileffn.execution.kernels.order import order_by_loops

    generator = torch.Generator().manual_seed(0)
    counts = torch.randint(1, max_loops + 1, (num_tokens,), generator=generator)
    order, active = order_by_loops(counts.to(device), max_loops)
    assert order.tolist() == counts.argsort(descending=True, stable=True).tolist()
    assert active.tolist() == [int((counts > loop).sum()) for loop in range(max_loops)]


@pytest.fixture
def multiplications(interpreter, monkeypatch):
    """Multiplications of all products in Triton's interpreter, padding included."""
    from triton.runtime.interpreter import InterpreterBuilder

    original, done = InterpreterBuilder.create_dot, [0]

    def counted(self, a, b, *rest):
        done[0] += a.data.shape[0] * a.data.shape[1] * b.data.shape[1]
        return original(self, a, b, *rest)

    monkeypatch.setattr(InterpreterBuilder, "create_dot", counted)
    return done


@pytest.mark.parametrize(
    "counts", [[1] * 48, [4] * 48, [4] * 16 + [2] * 16 + [1] * 16, [3] * 5 + [1] * 60], ids=str
)
def test_only_the_wanted_loops_are_computed(counts, multiplications):
    """Σ ℓ̂ FFN applications, to the block of 16 rows."""
    layer = make_layer(32, 64, dtype=torch.float32).eval()
    hidden = make_hidden(len(counts), 32, dtype=torch.float32)
    with torch.no_grad():
        plan = decide(layer, hidden)
        plan = dataclasses.replace(plan, loop_count=torch.tensor(counts))
        run_triton(hidden, view_of(layer), plan.weights())
    blocks = sum(-(-sum(count >= loop for count in counts) // 16) for loop in range(1, 5))
    assert multiplications[0] == blocks * 16 * 3 * 32 * 64


@pytest.mark.parametrize("counts", [[1], [4], [3, 1, 2]], ids=str)
def test_a_few_tokens_run_the_longest_one_s_loops(counts, multiplications):
    layer = make_layer(32, 96, dtype=torch.float32).eval()
    hidden = make_hidden(len(counts), 32, dtype=torch.float32)
    with torch.no_grad():
        plan = decide(layer, hidden)
        plan = dataclasses.replace(plan, loop_count=torch.tensor(counts))
        run_triton(hidden, view_of(layer), plan.weights())
    assert multiplications[0] == max(counts) * 16 * 3 * 32 * 96


@pytest.mark.parametrize("num_tokens", [0, 3, 40])
def test_the_operator_is_well_formed(num_tokens, device, monkeypatch):
    layer = make_layer(dtype=torch.float32, reuse_gains="learned").to(device).eval()
    hidden = make_hidden(num_tokens, 16, dtype=torch.float32).to(device)
    with torch.no_grad():
        plan = decide(layer, hidden)
        assert run_triton(hidden, view_of(layer), plan.weights()).shape == hidden.shape
        given = []
        monkeypatch.setattr(custom_op, "reuse_forward", lambda *arguments: given.extend(arguments))
        run_triton(hidden, view_of(layer), plan.weights())
        tests = ("test_schema", "test_faketensor")
        torch.library.opcheck(reuse_forward, tuple(given), test_utils=tests)


def test_a_compiled_graph_has_no_break(device):
    """Neither in the operator nor in what decides whether it may be used."""
    layer = make_layer(dtype=torch.float32).to(device).eval()
    hidden = make_hidden(40, 16, dtype=torch.float32).to(device)

    def run(hidden):
        plan = decide(layer, hidden)
        if unsupported(hidden, view_of(layer), plan.weights()) is not None:
            raise AssertionError
        return run_triton(hidden, view_of(layer), plan.weights()) * 2

    with torch.no_grad():
        compiled = torch.compile(run, fullgraph=True, backend="eager")
        assert torch.equal(compiled(hidden), run(hidden))


def test_what_is_not_supported_says_why(device):
    layer = make_layer(dtype=torch.float32).to(device).eval()
    hidden = make_hidden(3, 16, dtype=torch.float32).to(device)
    view, weights = view_of(layer), decide(layer, hidden).weights()
    with torch.no_grad():
        assert unsupported(hidden, view, weights) is None
        soft = dataclasses.replace(weights, hard=False)
        assert "soft" in unsupported(hidden, view, soft)
        assert "dtype" in unsupported(hidden.double(), view, weights)
        assert "dtype" in unsupported(hidden.bfloat16(), view, weights)
        for reason, change in {
            "RMSNorm": {"norm": nn.LayerNorm(16)},
            "activation": {"act": torch.tanh},
            "scale": {"scale": 0.5},
            "of its own": {"post_norm": nn.RMSNorm(16)},
        }.items():
            assert reason in unsupported(hidden, view._replace(**change), weights)
        fused = make_any("fused", Versatile(), dtype=torch.float32).to(device)
        assert "fused" in unsupported(hidden, view_of(fused), weights)
        with_bias = make_layer(dtype=torch.float32, bias=True).to(device)
        assert "bias" in unsupported(hidden, view_of(with_bias), weights)
    assert "gradients" in unsupported(hidden, view, weights)


def test_a_family_s_norm_is_read(device):
    layer = make_layer(dtype=torch.float32).to(device).eval()
    hidden = make_hidden(5, 16, dtype=torch.float32).to(device)
    view = view_of(layer)._replace(norm=LlamaRMSNorm(16, eps=0.1).to(device))
    with torch.no_grad():
        weights = decide(layer, hidden).weights()
        assert unsupported(hidden, view, weights) is None
        expected = run_packed(hidden, view, weights)
        assert torch.allclose(run_triton(hidden, view, weights), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.usefixtures("cuda")
@pytest.mark.parametrize("num_tokens", [1, 300])
def test_nothing_waits_for_the_host(num_tokens):
    layer = make_layer(64, 128, dtype=torch.bfloat16).cuda().eval()
    hidden = make_hidden(num_tokens, 64, dtype=torch.bfloat16).cuda()
    with torch.no_grad():
        plan = decide(layer, hidden)
        run_triton(hidden, view_of(layer), plan.weights())
        torch.cuda.set_sync_debug_mode("error")
        try:
            run_triton(hidden, view_of(layer), plan.weights())
        finally:
            torch.cuda.set_sync_debug_mode("default")


@pytest.mark.usefixtures("cuda")
@pytest.mark.parametrize("num_tokens", [1, 300])
def test_a_captured_graph_follows_the_plan(num_tokens):
    """Replayed with other hidden states, so with other loop counts."""
    layer = make_layer(64, 128, dtype=torch.bfloat16).cuda().eval()
    hidden = make_hidden(num_tokens, 64, dtype=torch.bfloat16).cuda()

    def run():
        return run_triton(hidden, view_of(layer), decide(layer, hidden).weights())

    with torch.no_grad():
        run()
        torch.cuda.synchronize()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            output = run()
        for seed in range(3):
            hidden.copy_(make_hidden(num_tokens, 64, dtype=torch.bfloat16, seed=seed + 5))
            graph.replay()
            torch.testing.assert_close(output, run(), rtol=0, atol=0)


@pytest.mark.parametrize("counts", [[4] * 40, [1] * 40, [3, 1, 2], [1]], ids=str)
def test_torchs_counter_sees_the_kernels(counts, device):
    """Σ ℓ̂ FFN applications; where a few tokens run together, as many as the longest for each."""
    layer = make_layer(32, 64, dtype=torch.float32).to(device).eval()
    hidden = make_hidden(len(counts), 32, dtype=torch.float32).to(device)
    with torch.no_grad():
        plan = decide(layer, hidden)
        plan = dataclasses.replace(plan, loop_count=torch.tensor(counts, device=device))
        with FlopCounterMode(display=False) as counter:
            run_triton(hidden, view_of(layer), plan.weights())
    rows = sum(counts) if len(counts) > 32 else len(counts) * max(counts)
    assert counter.get_total_flops() == rows * 2 * 3 * 32 * 64
