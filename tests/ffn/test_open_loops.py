"""Closed loops: nobody takes them, and the others are chosen as if there were no more."""

import pytest
import torch

import versatileffn as vf
from support.layers import gumbel, make_hidden, make_layer
from support.models import make_ids, make_model
from versatileffn.errors import ConfigError
from versatileffn.ffn.controller import loop_probabilities
from versatileffn.ffn.token_choice import TokenChoiceController


@pytest.mark.parametrize("loop_mix", ["hard", "soft"])
@pytest.mark.parametrize("training", [True, False])
def test_p_is_a_softmax_over_the_open_loops_and_lambda_counts_all(loop_mix, training):
    layer, hidden = make_layer(loop_mix=loop_mix).train(training), make_hidden(400, 16)
    noise = gumbel(hidden, 4)
    free = layer.controller(hidden, noise)
    assert (free.loop_count > 2).any()  # the control
    layer.controller.open_loops = 2
    plan = layer.controller(hidden, noise)
    logits = layer.controller.loop_head(hidden)[:, :2]
    expected = loop_probabilities(logits, layer.controller.tau, noise[:, :2])
    assert torch.equal(plan.loop_count, expected.argmax(-1) + 1)
    assert not plan.loop_probs[:, 2:].any()
    if loop_mix == "soft":
        torch.testing.assert_close(plan.loop_probs[:, :2], expected)
        mean = (expected * torch.tensor([1.0, 2.0])).sum(-1)
    else:
        mean = plan.loop_count
    torch.testing.assert_close(plan.lam, (1 - mean / 4).to(plan.lam))
    plan.check()
    layer.controller.open_loops = 4
    assert torch.equal(layer.controller(hidden, noise).loop_probs, free.loop_probs)


def test_gradients_are_finite_and_reach_the_open_loops_alone():
    layer, hidden = make_layer(), make_hidden(50, 16)
    layer.controller.open_loops = 2
    layer(hidden).hidden.square().sum().backward()
    gradient = layer.controller.loop_head.weight.grad
    assert gradient.isfinite().all()
    assert gradient[:2].any()
    assert not gradient[2:].any()


@pytest.mark.parametrize("execution", ["auto", "masked", "packed"])
def test_one_open_loop_is_one_loop_for_everybody(execution):
    layer, hidden = make_layer(fusion="depth"), make_hidden(50, 16)
    layer.execution = execution
    layer.controller.open_loops = 1
    given = layer.controller(hidden).with_loops(torch.ones(50, dtype=torch.int64))
    ones = layer(hidden)
    assert (ones.plan.loop_count == 1).all()
    torch.testing.assert_close(ones.hidden, layer(hidden, given).hidden, rtol=0, atol=1e-12)


def test_token_choice_has_open_loops_too():
    controller = TokenChoiceController(
        16, 32, vf.Versatile(controller="token-choice", fusion="depth")
    )
    torch.nn.init.normal_(controller.loop_head.weight)
    hidden = torch.randn(200, 16)
    assert (controller(hidden).loop_count > 3).any()
    controller.open_loops = 3
    plan = controller(hidden)
    logits = controller.loop_head(hidden)[:, :3]
    assert torch.equal(plan.loop_count, logits.argmax(-1) + 1)
    torch.testing.assert_close(plan.lam, 1 - logits.softmax(-1).amax(-1))
    assert plan.balance_loss().isfinite()


def test_a_model_sets_all_its_layers_and_refuses_what_it_has_not():
    model = make_model()
    model.set_open_loops(2)
    assert [layer.controller.open_loops for layer in model.reuse_layers()] == [2, 2]
    with pytest.raises(ConfigError, match="open_loops=5 exceeds max_loops=4"):
        model.set_open_loops(5)
    with pytest.raises(ConfigError, match="open_loops=0 must be a whole number from 1"):
        model.set_open_loops(0)


def test_a_first_loop_is_never_multiplied():
    """With one loop open the newest is the first, without which an FFN would do nothing."""
    model, ids = make_model().eval(), make_ids(2, 9)
    model.set_open_loops(1)
    whole = model(ids).logits
    model.set_open_loops(1, newest=0.0)
    assert torch.equal(model(ids).logits, whole)
    model.set_open_loops(2)
    both = model(ids).logits
    model.set_open_loops(2, newest=0.5)  # the control
    assert not torch.allclose(model(ids).logits, both)


def test_a_saved_model_has_all_loops_open(tmp_path):
    model = make_model()
    model.set_open_loops(1)
    model.save_pretrained(tmp_path)
    again = vf.VersatileLlamaForCausalLM.from_pretrained(tmp_path)
    assert again.reuse_layers()[0].controller.open_loops == 4


def test_opening_loops_compiles_no_more_than_twice():
    """Each value would otherwise be a constant of the graph, and a graph of its own."""
    graphs = []

    def backend(graph, _inputs):
        graphs.append(graph)
        return graph

    model, ids = make_model(max_loops=8), make_ids(2, 9)
    compiled = torch.compile(model, backend=backend)
    counts = []
    for open_loops in range(1, 9):
        model.set_open_loops(open_loops)
        with torch.no_grad():
            compiled(ids)
        counts.append(len(graphs))
    assert counts[1] == counts[6]  # 2 to 7
    assert counts[7] - counts[6] == counts[0]  # all open: no mask
