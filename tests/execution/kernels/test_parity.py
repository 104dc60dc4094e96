"""The kernels equal Algorithm 2 in float64, token by token."""

import copy
import dataclasses

import pytest
import torch

from support.layers import (
    as_naive,
    decide,
    execute_with,
    make_hidden,
    make_layer,
    relative_error,
    view_of,
)
from versatileffn.execution.kernels.custom_op import run_triton
from versatileffn.execution.kernels.support import unsupported
from versatileffn.execution.packed import run_packed
from versatileffn.ffn import naive
from versatileffn.ffn.config import KLoop

VARIANTS = {
    "paper": {},
    "average": {"fusion": "average"},
    "width": {"fusion": "width"},
    "depth": {"fusion": "depth"},
    "learned": {"reuse_gains": "learned"},
    "learned-width": {"reuse_gains": "learned", "fusion": "width"},
    "learned-depth": {"reuse_gains": "learned", "fusion": "depth"},
    "one-expert-per-token": {"top_k": 1},
    "one-expert": {"num_experts": 1, "top_k": 1},
    "small-single-expert": {"num_experts": 1, "top_k": 1, "d_expert": 5},
    "all-experts": {"num_experts": 4, "top_k": 4},
    "one-loop": {"max_loops": 1},
    "two-loops": {"max_loops": 2},
    "three-loops": {"max_loops": 3},
    "seven-loops": {"max_loops": 7, "reuse_gains": "learned"},
    "fractional-stride": {"num_experts": 5, "d_expert": 6},
    "unused-neurons": {"num_experts": 3, "d_expert": 4, "reuse_gains": "learned"},
    "gelu": {"gated": False, "activation": "gelu"},
    "gelu-tanh": {"activation": "gelu_tanh"},
    "relu": {"gated": False, "activation": "relu"},
    "relu2": {"gated": False, "activation": "relu2"},
    "token-choice": {"fusion": "depth", "controller": "token-choice", "reuse_gains": "learned"},
    "k-loop": {"config": KLoop(3)},
}
# Rows against blocks of 16 and 32; sizes that blocks divide, that they don't, and that tensor
# descriptors can't address (rows of 72 and 136 bytes).
SIZES = {"even": (32, 64, 36), "odd": (20, 44, 37), "no-descriptors": (18, 34, 21)}
COUNTS = [[1] * 18, [4] * 18, [4], [1], [2, 3, 2], [1, 4, 2, 4, 3, 1] * 3, [3] * 16 + [1] * 2]

pytestmark = pytest.mark.filterwarnings("ignore:.*belong to no expert.*:UserWarning")


def problem(dtype, size=(32, 64, 20), **settings):
    """A layer and hidden states in `dtype`, the plan, and the truth about these rounded weights."""
    d_model, d_hidden, num_tokens = size
    layer = make_layer(d_model, d_hidden, dtype=dtype, **settings).eval()
    hidden = make_hidden(num_tokens, d_model, dtype=dtype)
    exact = copy.deepcopy(layer).double()
    with torch.no_grad():
        plan = decide(exact, hidden.double())
        expected, loops = naive.infer(as_naive(exact), hidden.double())
    assert plan.loop_count.tolist() == loops
    return layer, hidden, plan, expected


def on(device, plan):
    """The plan as a controller in float32 makes it."""
    changed = {
        f.name: value.to(device, torch.float32 if value.is_floating_point() else None)
        for f in dataclasses.fields(plan)
        if isinstance(value := getattr(plan, f.name), torch.Tensor)
    }
    return dataclasses.replace(plan, **changed)


@torch.no_grad()
def by_kernels(device, layer, hidden, plan):
    layer, hidden, plan = layer.to(device), hidden.to(device), on(device, plan)
    assert unsupported(hidden, view_of(layer), plan.weights()) is None
    return execute_with(run_triton, layer, hidden, plan)


@pytest.mark.parametrize("settings", VARIANTS.values(), ids=VARIANTS.keys())
def test_every_variant(settings, path, device):
    layer, hidden, plan, expected = problem(torch.float32, **settings)
    assert relative_error(by_kernels(device, layer, hidden, plan), expected) <= 1e-5


@pytest.mark.parametrize("size", SIZES.values(), ids=SIZES.keys())
@pytest.mark.parametrize("settings", [{}, {"num_experts": 3, "reuse_gains": "learned"}], ids=str)
def test_sizes_that_blocks_do_not_divide(settings, size, path, device, poison):
    """In memory that is NaN wherever nothing was written."""
    if path == "few":
        size = (*size[:2], size[2] - 18)
    layer, hidden, plan, expected = problem(torch.float32, size, **settings)
    assert relative_error(by_kernels(device, layer, hidden, plan), expected) <= 1e-5


def with_counts(counts, dtype, **settings):
    """A problem whose loop head gives these counts."""
    layer = make_layer(32, 64, **settings).eval()
    hidden = make_hidden(len(counts), 32)
    targets = torch.nn.functional.one_hot(torch.tensor(counts) - 1, 4).double()
    with torch.no_grad():
        layer.controller.loop_head.weight.copy_((torch.linalg.pinv(hidden) @ targets).T)
        plan = decide(layer, hidden)
        assert plan.loop_count.tolist() == counts
        expected, _ = naive.infer(as_naive(layer), hidden)
    return layer.to(dtype), hidden.to(dtype), plan, expected


@pytest.mark.parametrize("counts", COUNTS, ids=lambda c: f"{len(c)}x{''.join(map(str, c[:6]))}")
@pytest.mark.parametrize("settings", [{}, {"reuse_gains": "learned"}], ids=["paper", "learned"])
def test_prescribed_loop_counts(counts, settings, path, device, poison):
    layer, hidden, plan, expected = with_counts(counts, torch.float32, **settings)
    assert relative_error(by_kernels(device, layer, hidden, plan), expected) <= 1e-5


@pytest.mark.parametrize("cap", [1, 2, 3])
@pytest.mark.parametrize(
    "settings", [{}, {"reuse_gains": "learned"}, {"config": KLoop(3)}], ids=str
)
def test_a_budget(settings, cap, path, device, poison):
    """One for all tokens, of which executors know, and one that they find in the tensor alone."""
    layer, hidden, plan, _ = problem(torch.float32, **settings)
    truth = as_naive(copy.deepcopy(layer).double())
    truth.budget = cap
    with torch.no_grad():
        expected, _ = naive.infer(truth, hidden.double())
    for given in (cap, torch.full((len(hidden),), cap)):
        capped = plan.capped(given)
        assert relative_error(by_kernels(device, layer, hidden, capped), expected) <= 1e-5


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("settings", [{}, {"reuse_gains": "learned"}, {"fusion": "depth"}], ids=str)
def test_half_precision(settings, dtype, path, device, poison):
    """Against the truth about the rounded weights, beside the packed executor.

    bfloat16 keeps 8 bits, so a rounding is off by up to 2⁻⁹, and a handful of them in each of four
    loops add up to 2e-2. The kernels round at fewer places than packed, but at others.
    """
    layer, hidden, plan, expected = problem(dtype, **settings)
    actual = by_kernels(device, layer, hidden, plan)
    with torch.no_grad():
        packed = execute_with(run_packed, layer, hidden.to(device), on(device, plan))
    assert actual.dtype == dtype
    assert relative_error(actual, expected) <= 1.5 * relative_error(packed, expected)
    assert relative_error(actual, expected) <= 2e-2


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_gains_at_zero_move_no_bit(dtype, path, device, poison):
    """The exact conversion: whatever its loops and λ, each token gets the dense FFN's output."""
    settings = {"reuse_gains": "learned", "gains_at": 0.0}
    layer, hidden, plan, _ = problem(dtype, (32, 64, 20), **settings)
    assert plan.loop_count.unique().numel() > 1
    # In one order, as the interpreter's products round a row by its place.
    order = plan.loop_count.argsort(descending=True)
    hidden, plan = hidden[order], plan.take(order)
    ones = torch.ones_like(plan.loop_count)
    dense = dataclasses.replace(plan, loop_count=ones)
    assert torch.equal(
        by_kernels(device, layer, hidden, plan), by_kernels(device, layer, hidden, dense)
    )


def everyone_runs_on(plan):
    return dataclasses.replace(plan, loop_count=torch.full_like(plan.loop_count, 4))


def exits_one_loop_early(plan):
    return dataclasses.replace(plan, loop_count=(plan.loop_count - 1).clamp_min(1))


def forgets_the_experts(plan):
    return dataclasses.replace(plan, gates=plan.gates * 0)


@pytest.mark.parametrize("wrong", [everyone_runs_on, exits_one_loop_early, forgets_the_experts])
def test_a_wrong_plan_fails_the_same_check(wrong, path, device):
    """The control: each mistake is far outside the tolerance."""
    layer, hidden, plan, expected = problem(torch.float32)
    assert relative_error(by_kernels(device, layer, hidden, wrong(plan)), expected) > 1e-3
