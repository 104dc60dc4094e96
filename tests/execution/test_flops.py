"""torch's FLOP counter sees what our operators do: it equals a count of their products, one by one.

The truth is the same work with nothing around it: torch counts its products as they run.
"""

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils.flop_counter import FlopCounterMode

from support.layers import decide, execute_with, gumbel, make_any, make_hidden, make_layer
from versatileffn.errors import ConfigError
from versatileffn.execution.masked import run_masked
from versatileffn.execution.operators import run_operator
from versatileffn.execution.packed import run_packed
from versatileffn.execution.packed_training import (
    run_packed_training,
    run_recomputed,
    run_stepwise_training,
)
from versatileffn.execution.stepwise import run_stepwise
from versatileffn.ffn.config import Versatile

TOKENS, D, F = 40, 16, 32
UNIT = 2 * D * F  # of one linear map for one token
COUNTS = {
    "mixed": None,
    "all-at-last": [4] * TOKENS,
    "all-once": [1] * TOKENS,
    "nobody-at-last": [3, 1, 2, 2] * 10,
}


def layer_and_plan(counts, hidden):
    layer = make_layer()
    noise = gumbel(hidden, 4)
    if counts is not None:
        noise = 50.0 * torch.nn.functional.one_hot(torch.tensor(counts) - 1, 4).double()
    return layer, decide(layer, hidden, noise)


def counted(work) -> int:
    with FlopCounterMode(display=False) as counter:
        work()
    return counter.get_total_flops()


def operator(name):
    """What was counted under the name of one operator."""
    return getattr(torch.ops.versatileffn, name)


@pytest.mark.parametrize("counts", COUNTS.values(), ids=COUNTS)
def test_inference(counts):
    hidden = make_hidden(TOKENS, D)
    layer, plan = layer_and_plan(counts, hidden)
    with torch.no_grad():
        found, truth = (
            counted(lambda run=run: execute_with(run, layer, hidden, plan))
            for run in (run_operator, run_packed)
        )
    assert found == truth == 3 * UNIT * plan.loop_count.sum().item()


@pytest.mark.parametrize("counts", COUNTS.values(), ids=COUNTS)
def test_training(counts):
    """All loops forward; backward twice the loops that a token took, and what isn't kept again."""
    hidden = make_hidden(TOKENS, D).requires_grad_()
    layer, plan = layer_and_plan(counts, hidden)
    loops, again = plan.loop_count.sum().item(), int((plan.loop_count < 4).sum())
    controller = 2 * TOKENS * D * (8 + 4)  # from its logits to H
    backward_of = {
        run_operator: UNIT * (6 * loops + 2 * (loops + again)),
        run_recomputed: UNIT * (6 * loops + 2 * (loops + again)),
        run_packed_training: UNIT * 6 * loops,
        run_masked: UNIT * 6 * TOKENS * 4,
    }
    for run, planned in backward_of.items():
        outputs = []
        forward = counted(lambda: outputs.append(execute_with(run, layer, hidden, plan)))  # noqa: B023
        weights = [hidden, plan.loop_probs, plan.lam, *layer.norm.parameters()]
        weights += layer.mlp.parameters()
        backward = counted(
            lambda: torch.autograd.grad(outputs[0].sum(), weights, retain_graph=True)  # noqa: B023
        )
        assert (forward, backward - controller) == (3 * UNIT * TOKENS * 4, planned), run.__name__


@pytest.mark.parametrize("counts", COUNTS.values(), ids=COUNTS)
def test_where_nothing_merges(counts):
    """Inference: Σ ℓ̂ applications and the routed tokens' own W_out. Training: that much more than
    once for each loop that is run again, and twice for its gradient."""
    layer, hidden = make_any("sandwich", Versatile()), make_hidden(TOKENS, D).requires_grad_()
    noise = gumbel(hidden, 4)
    if counts is not None:
        noise = 50.0 * torch.nn.functional.one_hot(torch.tensor(counts) - 1, 4).double()
    plan, outputs = decide(layer, hidden, noise), []
    loops, routed = plan.loop_count.sum().item(), int((plan.lam != 0).sum())
    with torch.no_grad():
        found = counted(lambda: execute_with(run_stepwise, layer, hidden, plan))
    assert found == UNIT * (3 * loops + routed)
    forward = counted(
        lambda: outputs.append(execute_with(run_stepwise_training, layer, hidden, plan))
    )
    assert forward == UNIT * (3 * TOKENS * 4 + routed)
    weights = [*layer.proj.parameters(), *layer.down.parameters(), plan.lam, plan.loop_probs]
    backward = counted(lambda: torch.autograd.grad(outputs[0].sum(), [hidden, *weights]))
    router = 2 * 2 * TOKENS * D * (8 + 4) - 2 * TOKENS * D * (8 + 4)
    assert backward == 3 * UNIT * (3 * loops + TOKENS) + router


def test_what_was_counted_carries_the_operators_name():
    hidden = make_hidden(TOKENS, D).requires_grad_()
    layer, plan = layer_and_plan(None, hidden)
    with FlopCounterMode(display=False) as counter:
        execute_with(run_operator, layer, hidden, plan).sum().backward()
    names = counter.get_flop_counts()["Global"]
    assert names[operator("packed_forward")] > 0
    assert names[operator("packed_backward")] > names[operator("packed_forward")]


def test_no_tokens():
    hidden = make_hidden(0, D).requires_grad_()
    layer, plan = layer_and_plan(None, hidden)
    work = counted(lambda: execute_with(run_operator, layer, hidden, plan).sum().backward())
    assert work == 0


def test_loop_counts_that_nobody_knows_are_refused():
    layer = make_layer()
    with FakeTensorMode(allow_non_fake_inputs=True), torch.no_grad():
        hidden = torch.empty(TOKENS, D, dtype=torch.float64)
        plan = decide(layer, hidden)
        with pytest.raises(ConfigError, match="versatileffn flops"):
            counted(lambda: execute_with(run_operator, layer, hidden, plan))
