"""Executed FLOPs equal the planned ones exactly, and the counter sees what torch's doesn't."""

import pytest
import torch
import torch.nn.functional as F
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.distributions import SHARES
from benchmarks.flops import FlopCounter
from benchmarks.layer_cases import training_flops, unit_flops
from benchmarks.layers import runners, set_up

a, b, c = torch.randn(3, 5), torch.randn(5, 7), torch.randn(3, 7)
batch_a, batch_b, batch_c = torch.randn(2, 3, 5), torch.randn(2, 5, 7), torch.randn(2, 3, 7)
ends = torch.tensor([1, 3], dtype=torch.int32)
long_a, long_b = torch.randn(3, 16), torch.randn(2, 16, 32)
query = torch.randn(1, 2, 4, 8)
ONE = 2 * 3 * 5 * 7

SEEN_BY_BOTH = {
    "mm": (lambda: a @ b, ONE),
    "mm out": (lambda: torch.mm(a, b, out=torch.empty(3, 7)), ONE),
    "addmm": (lambda: torch.addmm(c, a, b), ONE),
    "addmm out": (lambda: torch.addmm(c, a, b, out=torch.empty(3, 7)), ONE),
    "bmm": (lambda: batch_a @ batch_b, 2 * ONE),
    "baddbmm": (lambda: torch.baddbmm(batch_c, batch_a, batch_b), 2 * ONE),
    "linear": (lambda: F.linear(a, b.T), ONE),
    "einsum": (lambda: torch.einsum("ij,jk->ik", a, b), ONE),
}
SEEN_BY_OURS = {
    "addmm_": (lambda: c.clone().addmm_(a, b), ONE),
    "baddbmm_": (lambda: batch_c.clone().baddbmm_(batch_a, batch_b), 2 * ONE),
    "addbmm": (lambda: torch.addbmm(c, batch_a, batch_b), 2 * ONE),
    "mv": (lambda: a @ b[:, 0], 2 * 3 * 5),
    "addmv_": (lambda: torch.zeros(3).addmv_(a, b[:, 0]), 2 * 3 * 5),
    "grouped": (lambda: F.grouped_mm(long_a, long_b, offs=ends), 2 * 3 * 16 * 32),
    "attention on a CPU": (
        lambda: F.scaled_dot_product_attention(query, query, query),
        2 * 2 * 2 * 4 * 4 * 8,
    ),
}


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
@pytest.mark.parametrize(
    ("run", "flops"),
    (SEEN_BY_BOTH | SEEN_BY_OURS).values(),
    ids=(SEEN_BY_BOTH | SEEN_BY_OURS).keys(),
)
def test_every_kind_of_product_is_counted(run, flops, mode):
    with mode(), FlopCounter() as counter:
        run()
    assert counter.total == flops


@pytest.mark.parametrize(("run", "flops"), SEEN_BY_OURS.values(), ids=SEEN_BY_OURS.keys())
def test_what_torchs_own_counter_misses(run, flops):
    """When one of these fails, torch has learned to count it, and ours may forget it."""
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        run()
    assert counter.get_total_flops() != flops


def test_custom_operators_are_looked_into():
    @torch.library.custom_op("versatileffn_test::twice", mutates_args=())
    def twice(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        return (x @ y) + torch.mm(x, y)

    with torch.no_grad(), FlopCounter() as counter:
        result = twice(a, b)
    torch.testing.assert_close(result, 2 * (a @ b))
    assert counter.total == 2 * ONE


def test_the_backward_pass_is_counted():
    x, w = a.clone().requires_grad_(), b.clone().requires_grad_()
    with FlopCounter() as counter:
        (x @ w).sum().backward()
    assert counter.total == 3 * ONE


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("shares", SHARES.values(), ids=SHARES.keys())
def test_inference_executes_what_the_plan_asks_for(shares, dtype):
    setup = set_up(16, 32, 40, shares, dtype)
    loops = int(setup.plan().loop_count.sum())
    for name, units in (("packed", loops), ("masked", 40 * 4), ("no-width", loops)):
        run = runners(setup, [name])[name]
        with torch.inference_mode(), FlopCounter() as counter:
            run()
        assert counter.total == 6 * 16 * 32 * units, name


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("shares", SHARES.values(), ids=SHARES.keys())
def test_training_executes_what_the_plan_asks_for(shares, dtype):
    setup = set_up(16, 32, 40, shares, dtype, training=True)
    loops = int(setup.plan().loop_count.sum())
    packed = training_flops(setup, "packed")
    assert packed == {"executed": 2 * 3 * 16 * 32 * (40 * 4 + 2 * loops)} | {
        "planned": unit_flops(setup) * (40 * 4 + 2 * loops)
    }
    for name in ("masked", "recompute"):
        flops = training_flops(setup, name)
        assert flops["executed"] == flops["planned"], name
