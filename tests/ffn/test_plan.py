"""What a plan says of itself, and which plans are refused."""

import pytest
import torch

from support.layers import make_hidden, make_layer
from versatileffn.ffn.plan import expected_loops


@pytest.mark.parametrize("max_loops", [1, 4, 7])
def test_equation_12(max_loops):
    """E[L] = Σ ℓ·p_ℓ, added up one loop and one token at a time."""
    plan = make_layer(loop_mix="soft", max_loops=max_loops).controller(make_hidden(3, 5, 16))
    expected = [
        [sum(loop * p for loop, p in enumerate(token, start=1)) for token in row]
        for row in plan.loop_probs.tolist()
    ]
    torch.testing.assert_close(expected_loops(plan.loop_probs).tolist(), expected)
    torch.testing.assert_close(plan.expected_loops.tolist(), expected)
    if max_loops > 1:
        assert plan.expected_loops.std() > 0.1
        # Eq. 13 has its λ from there
        lam = (max_loops - plan.expected_loops) / max_loops
        torch.testing.assert_close(plan.lam, lam)


def test_a_hard_plan_expects_the_loops_it_runs():
    plan = make_layer().controller(make_hidden(40, 16))
    assert torch.equal(plan.expected_loops, plan.loop_count.double())
    assert torch.equal(
        torch.autograd.grad(plan.expected_loops.sum(), plan.loop_probs)[0][0],
        torch.arange(1.0, 5.0, dtype=torch.float64),
    )
