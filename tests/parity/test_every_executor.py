"""Every executor × dtype × loop distribution, with and without gradients, against one truth.

The truth is the masked executor in float64, which `test_layer_against_naive.py` holds to Algorithm
1. Here each input of the plan is a leaf of its own (λ isn't tied to ℓ̂), so that no gradient can
hide behind another.
"""

import dataclasses

import pytest
import torch
from torch.nn import functional as F

from benchmarks.distributions import SHARES, loop_counts
from support.layers import make_hidden, make_layer, relative_error
from versatileffn.execution.masked import run_masked
from versatileffn.execution.packed import BLOCK, run_packed
from versatileffn.execution.packed_training import run_packed_training, run_recomputed

TOKENS = 40
TOLERANCE = {torch.float64: 1e-10, torch.float32: 1e-5, torch.bfloat16: 4e-2}
"""Norm of the error over that of the truth. bfloat16 keeps 8 bits, and rounds about ten times
between an input and the gradient of a loop's state."""
CANCELLED = {("width_gain", torch.float32): 2e-5}
"""Looser: the gradient of s is one number, a sum over all tokens and neurons of terms of
both signs, and here it comes out small beside them."""
TRAINING = {"masked": run_masked, "packed": run_packed_training, "recompute": run_recomputed}
INFERENCE = {"masked": run_masked, "packed": run_packed}
PLAN_LEAVES = ("loop_probs", "lam", "gates", "width_gain", "loop_gains")


def layer_and_inputs(mean, gains, tokens=TOKENS):
    """Weights, hidden states and a plan, all of them numbers that bfloat16 has."""
    layer = make_layer(reuse_gains=gains, gains_at=0.4, dtype=torch.bfloat16)
    hidden = make_hidden(tokens, 16, dtype=torch.bfloat16)
    with torch.no_grad():
        plan = layer.eval().controller(hidden)
        counts = loop_counts(SHARES[mean], tokens)
        lam = torch.rand(tokens, generator=torch.Generator().manual_seed(3)).bfloat16().float()
        plan = dataclasses.replace(
            plan,
            loop_count=counts,
            loop_probs=F.one_hot(counts - 1, 4).float(),
            lam=lam,
            gates=plan.gates.bfloat16().float(),
        )
        if plan.loop_gains is not None:
            plan.loop_gains = torch.tensor([0.75, 1.5, -0.5, 0.25])
    return layer, hidden, plan


def run(executor, layer, hidden, plan, dtype):
    """Y and the gradients of H, of the plan's leaves and of the weights."""
    layer = layer.to(dtype)
    wide = torch.promote_types(dtype, torch.float32)
    leaves = {
        name: getattr(plan, name).detach().to(wide).requires_grad_()
        for name in PLAN_LEAVES
        if getattr(plan, name) is not None
    }
    hidden = hidden.to(dtype).requires_grad_()
    output = executor(hidden, layer.norm, layer.mlp, dataclasses.replace(plan, **leaves))
    assert output.dtype == dtype
    weights = {f"{n}": w for n, w in layer.named_parameters() if "controller" not in n}
    inputs = {"hidden": hidden, **leaves, **weights}
    projection = make_hidden(*output.shape, dtype=torch.bfloat16, seed=9).to(dtype)
    grads = torch.autograd.grad((output * projection).sum(), list(inputs.values()))
    results = {"output": output.detach(), **dict(zip(inputs, grads, strict=True))}
    # A constant for each token in the gradient of p is invisible to anything with Σ p = 1.
    results["loop_probs"] -= results["loop_probs"].mean(-1, keepdim=True)
    return {name: value.double() for name, value in results.items()}


def widened(plan):
    return dataclasses.replace(
        plan, lam=plan.lam.double(), gates=plan.gates.double(), loop_probs=plan.loop_probs.double()
    )


def errors(actual, expected):
    assert actual.keys() == expected.keys()
    return {name: relative_error(actual[name], truth) for name, truth in expected.items()}


@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
@pytest.mark.parametrize("executor", TRAINING.values(), ids=TRAINING.keys())
@pytest.mark.parametrize("gains", ["fixed", "learned"])
@pytest.mark.parametrize("mean", SHARES)
def test_training(mean, gains, executor, dtype):
    layer, hidden, plan = layer_and_inputs(mean, gains)
    expected = run(run_masked, layer, hidden, plan, torch.float64)
    found = errors(run(executor, layer, hidden, plan, dtype), expected)
    limits = {name: CANCELLED.get((name, dtype), TOLERANCE[dtype]) for name in found}
    wrong = {name: error for name, error in found.items() if not error <= limits[name]}
    assert not wrong


@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
@pytest.mark.parametrize("executor", INFERENCE.values(), ids=INFERENCE.keys())
@pytest.mark.parametrize("tokens", [TOKENS, BLOCK + 88], ids=["one-block", "two-blocks"])
@pytest.mark.parametrize("mean", SHARES)
def test_inference(mean, tokens, executor, dtype):
    layer, hidden, plan = layer_and_inputs(mean, "fixed", tokens)
    with torch.no_grad():
        layer = layer.double()
        expected = run_masked(hidden.double(), layer.norm, layer.mlp, widened(plan))
        layer = layer.to(dtype)
        plan = widened(plan) if dtype == torch.float64 else plan
        actual = executor(hidden.to(dtype), layer.norm, layer.mlp, plan)
    assert (actual.double() - expected).norm() <= TOLERANCE[dtype] * expected.norm()


def one_loop_too_few(hidden, norm, mlp, plan):
    counts = (plan.loop_count - 1).clamp_min(1)
    return run_packed_training(hidden, norm, mlp, dataclasses.replace(plan, loop_count=counts))


@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
def test_a_wrong_executor_is_found_in_every_dtype(dtype):
    """The control: tokens that leave one loop early are far outside the loosest tolerance."""
    layer, hidden, plan = layer_and_inputs("2.5", "fixed")
    expected = run(run_masked, layer, hidden, plan, torch.float64)
    assert max(errors(run(one_loop_too_few, layer, hidden, plan, dtype), expected).values()) > 0.2
