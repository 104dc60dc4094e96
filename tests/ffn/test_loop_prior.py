"""The prior of loop counts: its loss against the formula, its draws against its shares."""

import math

import pytest
import torch

import versatileffn as vf
from support.models import make_ids, make_model
from versatileffn.errors import ConfigError
from versatileffn.ffn.base_config import FFNConfig
from versatileffn.ffn.loop_prior import draw_loops, geometric_prior, prior_loss


def by_hand(logits, ratio, mask=None):
    """KL(q ‖ π), number by number."""
    tokens = [row for i, row in enumerate(logits.tolist()) if mask is None or mask[i]]
    most = len(tokens[0])
    q = [0.0] * most
    for row in tokens:
        total = sum(math.exp(x) for x in row)
        for n, x in enumerate(row):
            q[n] += math.exp(x) / total / len(tokens)
    weights = [ratio**n for n in range(most)]
    return sum(
        share * math.log(share / (weight / sum(weights)))
        for share, weight in zip(q, weights, strict=True)
        if share
    )


@pytest.mark.parametrize("ratio", [1.0, 0.5, 3.0])
def test_the_loss_is_the_divergence_of_the_mean_exit(ratio):
    torch.manual_seed(0)
    logits = 2 * torch.randn(7, 4, dtype=torch.float64)
    mask = torch.tensor([1, 1, 0, 1, 0, 1, 1])
    assert prior_loss(logits, ratio).item() == pytest.approx(by_hand(logits, ratio))
    assert prior_loss(logits, ratio, mask).item() == pytest.approx(by_hand(logits, ratio, mask))
    of_each = sum(by_hand(logits[i : i + 1], ratio) for i in range(7)) / 7
    assert of_each > by_hand(logits, ratio) + 0.05  # the control: tokens may be certain


def test_certain_tokens_spread_as_the_prior_says_cost_nothing():
    certain = 50.0 * torch.eye(4, dtype=torch.float64)
    assert prior_loss(certain, 1.0).item() == pytest.approx(0, abs=1e-12)
    assert prior_loss(certain[:1].expand(4, 4), 1.0).item() == pytest.approx(math.log(4))
    assert prior_loss(certain, 0.5).item() > 0.1


def test_closed_loops_have_no_gradient_and_break_none():
    logits = torch.randn(6, 4, dtype=torch.float64, requires_grad=True)
    closed = logits.masked_fill(torch.arange(4) >= 2, -torch.inf)
    loss = prior_loss(closed, 1.0)
    assert loss.item() == pytest.approx(by_hand(closed.detach(), 1.0))
    loss.backward()
    assert logits.grad.isfinite().all()
    assert logits.grad[:, :2].any()
    assert not logits.grad[:, 2:].any()


@pytest.mark.parametrize("family", ["versatile", "token-choice"])
def test_a_training_loss_has_it_and_another_has_not(family):
    knobs = {"loop_prior": 0.5, "router_aux_loss_coef": 0.0}
    if family == "token-choice":
        knobs |= {"controller": "token-choice", "fusion": "depth"}
    ids = make_ids(3, 9)
    mask = torch.ones_like(ids)
    mask[0, :4] = 0
    losses = {}
    for coef in (0.0, 2.0):
        model = make_model(**knobs, loop_prior_coef=coef).train()
        torch.manual_seed(0)
        out = model(ids, labels=ids, attention_mask=mask, output_reuse_plans=True)
        losses[coef] = out
    kept = mask.flatten().tolist()
    terms = [by_hand(p.loop_logits.flatten(0, 1), 0.5, kept) for p in losses[2.0].reuse_plans]
    expected = sum(terms) / 2
    assert losses[2.0].prior_loss.item() == pytest.approx(expected, rel=1e-4)
    assert losses[0.0].prior_loss is None
    difference = (losses[2.0].loss - losses[0.0].loss).item()
    assert difference == pytest.approx(2 * expected, rel=1e-3)
    assert make_model(**knobs, loop_prior_coef=2.0)(ids, labels=ids).prior_loss is None
    losses[2.0].loss.backward()


def test_micro_batches_average_it_instead_of_adding_it_up():
    ids = make_ids(4, 9)
    model = make_model(loop_prior_coef=5.0, router_aux_loss_coef=0.0).train()
    plain = make_model(loop_prior_coef=0.0, router_aux_loss_coef=0.0).train()
    added = []
    for part in ids.chunk(2):
        pair = []
        for each in (model, plain):
            torch.manual_seed(1)
            pair.append(each(part, labels=part, num_items_in_batch=4 * 8))
        added.append((pair[0].loss - pair[1].loss).item() / (5 * pair[0].prior_loss.item()))
    assert added == [pytest.approx(0.5, rel=1e-3)] * 2


def test_draws_have_the_shares_of_the_prior_among_open_loops():
    torch.manual_seed(0)
    logits = 5 * torch.randn(200, 200, 4)
    assert geometric_prior(4, 0.5, logits).tolist() == pytest.approx(
        [8 / 15, 4 / 15, 2 / 15, 1 / 15]
    )
    counts = draw_loops(logits, 0.5)
    assert counts.shape == (200, 200)
    shares = torch.bincount(counts.flatten(), minlength=5)[1:] / counts.numel()
    assert shares.tolist() == pytest.approx([8 / 15, 4 / 15, 2 / 15, 1 / 15], abs=0.01)
    logits[..., 2:] = -torch.inf
    shares = torch.bincount(draw_loops(logits, 0.5).flatten(), minlength=5)[1:] / counts.numel()
    assert shares.tolist() == pytest.approx([2 / 3, 1 / 3, 0, 0], abs=0.01)


@pytest.mark.parametrize(
    ("knobs", "message"),
    [
        ({"loop_prior": 0.0}, "loop_prior=0.0 must be a positive ratio"),
        ({"loop_prior": "uniform"}, "loop_prior='uniform' must be a finite number"),
        ({"loop_prior_coef": -1.0}, "loop_prior_coef=-1.0 is negative"),
        ({"loop_prior_coef": 1.0, "fusion": "width"}, "no effect where all tokens take one loop"),
        ({"loop_prior_coef": 1.0, "variant": "k-loop"}, "loop_prior_coef is a knob of versatile"),
    ],
    ids=str,
)
def test_bad_values_are_refused(knobs, message):
    with pytest.raises(ConfigError, match=message):
        FFNConfig.from_dict(knobs)


def test_a_controller_that_names_no_chances_is_refused():
    model, ids = make_model(loop_prior_coef=1.0).train(), make_ids(2, 5)
    for layer in model.reuse_layers():
        layer.controller = vf.VersatileFFN(32, 64, vf.KLoop(4)).controller
    with pytest.raises(ConfigError, match="no controller's plans have loop_logits"):
        model(ids, labels=ids)
