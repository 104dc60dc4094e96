import pytest
import torch

from support.layers import make_hidden, make_layer
from versatileffn.ffn.losses import balance_loss, expert_statistics, loop_statistics


def test_balanced_is_one_and_collapsed_is_larger():
    uniform = torch.eye(8).repeat(4, 1) * 1e-4
    assert balance_loss(uniform, 1).item() == pytest.approx(1.0, abs=1e-4)
    collapsed = torch.zeros(32, 8)
    collapsed[:, 0] = 20.0
    assert balance_loss(collapsed, 1).item() == pytest.approx(8.0, abs=1e-3)


@pytest.mark.parametrize("top_k", [1, 2, 3])
def test_definition(top_k):
    """N Σ f_i P_i by counting, one token at a time."""
    logits = make_hidden(40, 6)
    fraction, probability = [0.0] * 6, [0.0] * 6
    for row in logits:
        for i in torch.topk(row, top_k).indices.tolist():
            fraction[i] += 1 / (40 * top_k)
        for i, p in enumerate(torch.softmax(row, 0).tolist()):
            probability[i] += p / 40
    expected = 6 * sum(f * p for f, p in zip(fraction, probability, strict=True))
    assert balance_loss(logits, top_k).item() == pytest.approx(expected, abs=1e-12)


def test_the_gradient_evens_out_the_load():
    logits = make_hidden(64, 4)
    logits[:, 2] += 3
    logits.requires_grad_()
    balance_loss(logits, 1).backward()
    assert logits.grad[:, 2].sum() > 0
    assert all(logits.grad[:, i].sum() < 0 for i in (0, 1, 3))


def test_masked_tokens_do_not_count():
    logits, extra = make_hidden(10, 4), 50 * make_hidden(3, 4, seed=8)
    mask = torch.tensor([1] * 10 + [0] * 3)
    both = torch.cat([logits, extra])
    torch.testing.assert_close(balance_loss(both, 2, mask), balance_loss(logits, 2))
    assert balance_loss(logits, 2, torch.zeros(10)).item() == 0


def test_the_layer_returns_its_balance_loss():
    layer, hidden = make_layer(), make_hidden(2, 9, 16)
    out = layer(hidden)
    torch.testing.assert_close(out.balance_loss, balance_loss(out.plan.router_logits, 2))
    out.balance_loss.backward()
    assert layer.controller.router.weight.grad.abs().max() > 1e-4
    assert make_layer(fusion="depth")(hidden).balance_loss is None


def test_statistics_count():
    layer = make_layer().eval()
    plan = layer(make_hidden(4, 25, 16)).plan
    stats = loop_statistics(plan)
    counts = plan.loop_count.flatten().tolist()
    assert stats.mean_loops.item() == pytest.approx(sum(counts) / 100)
    assert stats.loop_share.tolist() == pytest.approx([counts.count(i) / 100 for i in (1, 2, 3, 4)])
    assert stats.mean_lam.item() == pytest.approx(1 - stats.mean_loops.item() / 4)
    load = expert_statistics(plan, 8)
    assert load.sum().item() == pytest.approx(1)
    assert load[3].item() == pytest.approx((plan.experts == 3).sum().item() / 200)
    with pytest.raises(ValueError, match="no width pathway"):
        expert_statistics(make_layer(fusion="depth")(make_hidden(3, 16)).plan, 8)
