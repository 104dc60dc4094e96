"""The baselines equal their definitions, written out."""

import pytest
import torch

from support.layers import make_hidden
from versatileffn.ffn.config import Dense, KLoop, MoE
from versatileffn.ffn.mlp import ACTIVATIONS
from versatileffn.ffn.moe import grouped_linear
from versatileffn.layer import VersatileFFN


@pytest.mark.parametrize("num_loops", [1, 2, 5])
def test_k_loop_repeats_the_dense_ffn(num_loops):
    dense = VersatileFFN(16, 32, Dense()).double()
    loop = VersatileFFN(16, 32, KLoop(num_loops)).double()
    loop.load_state_dict(dense.state_dict())
    expected = hidden = make_hidden(5, 16)
    for _ in range(num_loops):
        expected = dense(expected).hidden
    torch.testing.assert_close(loop(hidden).hidden, expected)


def test_k_loop_with_learned_gains_starts_dense_and_uses_them():
    loop = VersatileFFN(16, 32, KLoop(3, reuse_gains="learned")).double()
    dense = VersatileFFN(16, 32, Dense()).double()
    dense.load_state_dict(loop.state_dict(), strict=False)
    hidden = make_hidden(5, 16)
    assert torch.equal(loop(hidden).hidden, dense(hidden).hidden)
    with torch.no_grad():
        loop.gains.loop_gains.fill_(1.0)
    plain = VersatileFFN(16, 32, KLoop(3)).double()
    plain.load_state_dict(loop.state_dict(), strict=False)
    torch.testing.assert_close(loop(hidden).hidden, plain(hidden).hidden)


def moe_token_by_token(layer: VersatileFFN, hidden):
    """Y = H + FFN(x) + Σ g_k E_k(x), one token and one expert at a time."""
    experts, outputs = layer.experts, []
    for h in hidden:
        x = layer.norm(h)
        logits = experts.router(x)
        top = torch.topk(logits, experts.top_k)
        gates = torch.softmax(logits if experts.top_k == 1 else top.values, 0)
        y = h + layer.mlp(x)
        for position, k in enumerate(top.indices.tolist()):
            gate = gates[k] if experts.top_k == 1 else gates[position]
            hidden_fk = experts.gate_up_proj[k] @ x
            if experts.gated:
                half = hidden_fk.shape[0] // 2
                a = experts.act_fn(hidden_fk[:half]) * hidden_fk[half:]
            else:
                a = experts.act_fn(hidden_fk)
            y = y + gate * (experts.down_proj[k] @ a)
        outputs.append(y)
    return torch.stack(outputs)


@pytest.mark.parametrize("gated", [True, False])
@pytest.mark.parametrize("top_k", [1, 2, 4])
def test_moe_equals_its_definition_in_outputs_and_gradients(top_k, gated):
    torch.manual_seed(0)
    layer = VersatileFFN(16, 32, MoE(num_experts=4, top_k=top_k), gated=gated)
    layer.double()
    layer.experts.reset_parameters(std=0.5)
    hidden = make_hidden(11, 16).requires_grad_()
    actual, expected = layer(hidden).hidden, moe_token_by_token(layer, hidden)
    torch.testing.assert_close(actual, expected, rtol=0, atol=1e-10)
    projection = make_hidden(11, 16, seed=4)
    inputs = [hidden, *layer.parameters()]
    ours = torch.autograd.grad((actual * projection).sum(), inputs)
    truth = torch.autograd.grad((expected * projection).sum(), inputs)
    for a, b in zip(ours, truth, strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-10)
    router = next(i for i, p in enumerate(inputs) if p is layer.experts.router.weight)
    assert ours[router].abs().max() > 1e-6


def test_grouped_linear_with_empty_groups():
    rows, weight = make_hidden(5, 3), make_hidden(4, 2, 3, seed=5)
    actual = grouped_linear(rows, weight, torch.tensor([0, 2, 0, 3]))
    expected = torch.cat([rows[:2] @ weight[1].T, rows[2:] @ weight[3].T])
    torch.testing.assert_close(actual, expected)


def test_moe_in_bfloat16_autocast_trains():
    layer = VersatileFFN(16, 32, MoE())
    with torch.autocast("cpu", torch.bfloat16):
        out = layer(make_hidden(2, 7, 16, dtype=torch.float32))
    (out.hidden.float().sum() + out.balance_loss).backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in layer.parameters())


def test_activations():
    x = torch.linspace(-3, 3, 31)
    tanh = 0.5 * x * (1 + torch.tanh((2 / torch.pi) ** 0.5 * (x + 0.044715 * x**3)))
    torch.testing.assert_close(ACTIVATIONS["gelu_tanh"](x), tanh)
    torch.testing.assert_close(ACTIVATIONS["relu2"](x), x.clamp_min(0) ** 2)
    torch.testing.assert_close(ACTIVATIONS["silu"](x), x * torch.sigmoid(x))


def test_the_dense_ffn_equals_equation_2():
    layer, h = VersatileFFN(16, 32, Dense()).double(), make_hidden(16)
    x = h / (h.pow(2).mean() + 1e-6).sqrt() * layer.norm.weight
    gate, up = layer.mlp.gate_proj.weight @ x, layer.mlp.up_proj.weight @ x
    expected = h + layer.mlp.down_proj.weight @ (gate * torch.sigmoid(gate) * up)
    torch.testing.assert_close(layer(h).hidden, expected)
