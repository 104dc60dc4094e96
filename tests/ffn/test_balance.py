import pytest
import torch

from support.layers import make_hidden, make_layer
from versatileffn.ffn.balance import balance_loss
from versatileffn.ffn.config import KLoop, MoE


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


@pytest.mark.parametrize(("settings", "top_k"), [({}, 2), ({"config": MoE(top_k=3)}, 3)], ids=str)
def test_what_was_decided_knows_its_loss(settings, top_k):
    """Of the tokens that count, which a layer isn't told."""
    plan = make_layer(**settings).eval()(make_hidden(2, 9, 16)).plan
    mask = (torch.arange(18) % 3 > 0).view(2, 9)
    expected = balance_loss(plan.router_logits[mask], top_k)
    torch.testing.assert_close(plan.balance_loss(mask), expected)
    assert plan.balance_loss().item() != pytest.approx(expected.item(), rel=1e-6)


def test_where_nothing_is_chosen_there_is_no_loss():
    assert make_layer(config=KLoop(2))(make_hidden(3, 16)).balance_loss is None
