"""How the kernels are launched: the order, the work, no waiting, graphs, the operator."""

import dataclasses

import pytest
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from support.layers import make_hidden, make_layer
from versatileffn.execution.kernels.custom_op import reuse_forward, run_triton, supports
from versatileffn.execution.kernels.support import unsupported


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
        plan = layer.controller(hidden)
        plan = dataclasses.replace(plan, loop_count=torch.tensor(counts))
        run_triton(hidden, layer.norm, layer.mlp, plan)
    blocks = sum(-(-sum(count >= loop for count in counts) // 16) for loop in range(1, 5))
    assert multiplications[0] == blocks * 16 * 3 * 32 * 64


@pytest.mark.parametrize("counts", [[1], [4], [3, 1, 2]], ids=str)
def test_a_few_tokens_run_the_longest_one_s_loops(counts, multiplications):
    layer = make_layer(32, 96, dtype=torch.float32).eval()
    hidden = make_hidden(len(counts), 32, dtype=torch.float32)
    with torch.no_grad():
        plan = layer.controller(hidden)
        plan = dataclasses.replace(plan, loop_count=torch.tensor(counts))
        run_triton(hidden, layer.norm, layer.mlp, plan)
    assert multiplications[0] == max(counts) * 16 * 3 * 32 * 96


def arguments(layer, hidden, plan):
    """What `run_triton` hands to the operator."""
    return (
        hidden, layer.norm.weight, 1e-6, layer.mlp.gate_proj.weight, layer.mlp.up_proj.weight,
        layer.mlp.down_proj.weight, "silu", plan.loop_count, plan.lam, plan.gates, plan.experts,
        plan.width_gain, plan.loop_gains, plan.shared, plan.max_loops, plan.slices.num_experts,
        plan.slices.d_expert,
    )  # fmt: skip


@pytest.mark.parametrize("num_tokens", [0, 3, 40])
def test_the_operator_is_well_formed(num_tokens, device):
    layer = make_layer(dtype=torch.float32, reuse_gains="learned").to(device).eval()
    hidden = make_hidden(num_tokens, 16, dtype=torch.float32).to(device)
    with torch.no_grad():
        plan = layer.controller(hidden)
        assert run_triton(hidden, layer.norm, layer.mlp, plan).shape == hidden.shape
        torch.library.opcheck(
            reuse_forward,
            arguments(layer, hidden, plan),
            test_utils=("test_schema", "test_faketensor"),
        )


def test_a_compiled_graph_has_no_break(device):
    """Neither in the operator nor in what decides whether it may be used."""
    layer = make_layer(dtype=torch.float32).to(device).eval()
    hidden = make_hidden(40, 16, dtype=torch.float32).to(device)

    def run(hidden):
        plan = layer.controller(hidden)
        if not supports(hidden, layer.norm, layer.mlp, plan):
            raise AssertionError
        return run_triton(hidden, layer.norm, layer.mlp, plan) * 2

    with torch.no_grad():
        compiled = torch.compile(run, fullgraph=True, backend="eager")
        assert torch.equal(compiled(hidden), run(hidden))


def test_what_is_not_supported_says_why(device):
    layer = make_layer(dtype=torch.float32).to(device).eval()
    hidden = make_hidden(3, 16, dtype=torch.float32).to(device)
    with torch.no_grad():
        plan = layer.controller(hidden)
        assert supports(hidden, layer.norm, layer.mlp, plan)
        soft = dataclasses.replace(plan, hard=False)
        assert "soft" in unsupported(hidden, layer.norm, layer.mlp, soft)
        assert "RMSNorm" in unsupported(hidden, nn.LayerNorm(16), layer.mlp, plan)
        assert "dtype" in unsupported(hidden.double(), layer.norm, layer.mlp, plan)
        assert "dtype" in unsupported(hidden.bfloat16(), layer.norm, layer.mlp, plan)
        with_bias = make_layer(dtype=torch.float32, bias=True).to(device)
        assert "bias" in unsupported(hidden, with_bias.norm, with_bias.mlp, plan)
        layer.mlp.act_fn = torch.tanh
        assert "activation" in unsupported(hidden, layer.norm, layer.mlp, plan)
    assert "gradients" in unsupported(hidden, layer.norm, layer.mlp, plan)


def test_transformers_norm_is_read(device):
    from transformers import LlamaConfig
    from transformers.models.gemma.modeling_gemma import GemmaRMSNorm
    from transformers.models.llama.modeling_llama import LlamaMLP, LlamaRMSNorm

    from versatileffn.execution.packed import run_packed

    layer = make_layer(dtype=torch.float32).to(device).eval()
    hidden = make_hidden(5, 16, dtype=torch.float32).to(device)
    norm = LlamaRMSNorm(16, eps=0.1).to(device)
    mlp = LlamaMLP(LlamaConfig(hidden_size=16, intermediate_size=32, num_attention_heads=2)).to(
        device
    )
    with torch.no_grad():
        plan = layer.controller(hidden)
        assert unsupported(hidden, norm, mlp, plan) is None
        assert unsupported(hidden, GemmaRMSNorm(16).to(device), mlp, plan)
        expected = run_packed(hidden, norm, mlp, plan)
        assert torch.allclose(run_triton(hidden, norm, mlp, plan), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.usefixtures("cuda")
@pytest.mark.parametrize("num_tokens", [1, 300])
def test_nothing_waits_for_the_host(num_tokens):
    layer = make_layer(64, 128, dtype=torch.bfloat16).cuda().eval()
    hidden = make_hidden(num_tokens, 64, dtype=torch.bfloat16).cuda()
    with torch.no_grad():
        plan = layer.controller(hidden)
        run_triton(hidden, layer.norm, layer.mlp, plan)
        torch.cuda.set_sync_debug_mode("error")
        try:
            run_triton(hidden, layer.norm, layer.mlp, plan)
        finally:
            torch.cuda.set_sync_debug_mode("default")


@pytest.mark.usefixtures("cuda")
@pytest.mark.parametrize("num_tokens", [1, 300])
def test_a_captured_graph_follows_the_plan(num_tokens):
    """Replayed with other hidden states, so with other loop counts."""
    layer = make_layer(64, 128, dtype=torch.bfloat16).cuda().eval()
    hidden = make_hidden(num_tokens, 64, dtype=torch.bfloat16).cuda()

    def run():
        return run_triton(hidden, layer.norm, layer.mlp, layer.controller(hidden))

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
        plan = layer.controller(hidden)
        plan = dataclasses.replace(plan, loop_count=torch.tensor(counts, device=device))
        with FlopCounterMode(display=False) as counter:
            run_triton(hidden, layer.norm, layer.mlp, plan)
    rows = sum(counts) if len(counts) > 32 else len(counts) * max(counts)
    assert counter.get_total_flops() == rows * 2 * 3 * 32 * 64
