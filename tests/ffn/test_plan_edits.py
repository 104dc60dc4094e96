"""A plan can be given other loop counts: λ follows as it did when the plan was made."""

import pytest
import torch

from versatileffn.errors import PlanError
from versatileffn.ffn.config import KLoop, Versatile
from versatileffn.layer import VersatileFFN


@pytest.mark.parametrize("fusion", ["difficulty", "average", "depth"])
@pytest.mark.parametrize("reuse_gains", ["fixed", "learned"])
def test_an_edited_plan_is_what_the_controller_would_have_made(fusion, reuse_gains):
    """The loop head is made to choose what the edit asks for."""
    torch.manual_seed(0)
    layer = VersatileFFN(16, 32, Versatile(fusion=fusion, reuse_gains=reuse_gains)).double().eval()
    hidden = torch.randn(9, 16, dtype=torch.float64)
    plan = layer(hidden).plan
    wanted = torch.arange(9) % 4 + 1
    edited = plan.with_loops(wanted)
    edited.check(32)

    class Wanted(torch.nn.Module):
        def forward(self, x):
            return torch.nn.functional.one_hot(wanted - 1, 4).to(x) * 10

    layer.controller.loop_head = Wanted()
    made = layer(hidden)
    assert torch.equal(made.plan.loop_count, wanted)
    torch.testing.assert_close(edited.lam, made.plan.lam)
    torch.testing.assert_close(layer(hidden, edited).hidden, made.hidden)
    if fusion == "difficulty":
        torch.testing.assert_close(edited.lam, 1 - wanted / 4, check_dtype=False)


def test_a_uniform_plan_is_uniform_no_more():
    layer = VersatileFFN(16, 32, KLoop(3)).eval()
    hidden = torch.randn(4, 16)
    plan = layer(hidden).plan
    assert plan.uniform == 3
    edited = plan.with_loops(torch.tensor([1, 2, 3, 1]))
    assert edited.uniform is None
    once = hidden + layer.mlp(layer.norm(hidden))
    torch.testing.assert_close(layer(hidden, edited).hidden[[0, 3]], once[[0, 3]])


@pytest.mark.parametrize(
    ("counts", "message"),
    [
        (torch.tensor([1, 2]), "give one for each token"),
        (torch.tensor([0, 1, 1]), "must lie in 1 to max_loops=4"),
        (torch.tensor([5, 1, 1]), "must lie in 1 to max_loops=4"),
        (torch.tensor([1.0, 1.0, 1.0]), "must be int64"),
    ],
    ids=str,
)
def test_what_is_no_loop_count(counts, message):
    plan = VersatileFFN(16, 32)(torch.randn(3, 16)).plan
    with pytest.raises(PlanError, match=message):
        plan.with_loops(counts)
