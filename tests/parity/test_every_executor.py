"""Every executor × dtype × loop distribution, with and without gradients, against one truth.

The truth is the masked executor in float64, which `test_layer_against_naive.py` holds to Algorithm
1. Here each weight of a token is a leaf of its own (1 − λ isn't tied to ℓ̂), so that no gradient can
hide behind another.
"""

import dataclasses

import pytest
import torch
from torch.nn import functional as F

from support.layers import decide, make_any, make_hidden, relative_error, view_of
from versatileffn.execution.masked import run_masked
from versatileffn.execution.order import BLOCK
from versatileffn.execution.packed import run_packed
from versatileffn.execution.packed_training import (
    run_packed_training,
    run_recomputed,
    run_stepwise_training,
)
from versatileffn.execution.stepwise import run_stepwise
from versatileffn.ffn.config import Versatile

TOKENS = 40
PATTERNS = {"1.2": [1] * 17 + [2] * 2 + [3], "2.5": [4, 1, 3, 2], "4.0": [4]}
"""Loops of the first tokens, and so on, by their mean."""
TOLERANCE = {torch.float64: 1e-10, torch.float32: 1e-5, torch.bfloat16: 4e-2}
"""Norm of the error over that of the truth. bfloat16 keeps 8 bits, and rounds about ten times
between an input and the gradient of a loop's state."""
CANCELLED = {("routed_M1", torch.float32): 2e-5, ("gains_L", torch.bfloat16): 6e-2}
"""Looser: these are sums over all neurons, or all tokens, of terms of both signs, and some come out
small beside their terms. masked is as far off."""
MERGED = {"masked": run_masked, "packed": run_packed_training, "recompute": run_recomputed}
STEPWISE = {"masked": run_masked, "stepwise": run_stepwise_training}
TRAINING = [
    (form, name, run)
    for form, runs in {"swiglu": MERGED, "fused-biases": MERGED, "post-norm": STEPWISE}.items()
    for name, run in runs.items()
]
INFERENCE = [
    ("swiglu", run_masked), ("swiglu", run_packed), ("layer-norm", run_packed),
    ("sandwich", run_stepwise),
]  # fmt: skip
LEAVES = ("probs_ML", "kept_M1", "shared_M1", "routed_M1", "gates_MN", "gains_L")


def problem(mean, gains, form="swiglu", tokens=TOKENS):
    """Weights, hidden states and a plan's weights, all of them numbers that bfloat16 has."""
    layer = make_any(form, Versatile(reuse_gains=gains), dtype=torch.bfloat16, gains_at=0.4)
    hidden = make_hidden(tokens, 16, dtype=torch.bfloat16)
    with torch.no_grad():
        weights = decide(layer.eval(), hidden).weights()
        counts = torch.tensor(PATTERNS[mean] * tokens)[:tokens]
        kept = torch.rand(tokens, 1, generator=torch.Generator().manual_seed(3)).bfloat16().float()
        changes = {
            "loop_count": counts,
            "probs_ML": F.one_hot(counts - 1, 4).float(),
            "kept_M1": kept,
            "routed_M1": (1 - kept).bfloat16().float(),
            "gates_MN": weights.gates_MN.bfloat16().float(),
        }
        if weights.gains_L is not None:
            changes["gains_L"] = torch.tensor([0.75, 1.5, -0.5, 0.25])
            changes["shared_M1"] = 1 - kept
    return layer, hidden, dataclasses.replace(weights, **changes)


def run(executor, layer, hidden, weights, dtype):
    """The update and the gradients of H, of the tokens' weights and of the layer's."""
    layer = layer.to(dtype)
    wide = torch.promote_types(dtype, torch.float32)
    leaves = {
        name: getattr(weights, name).detach().to(wide).requires_grad_()
        for name in LEAVES
        if getattr(weights, name) is not None
    }
    hidden = hidden.to(dtype).requires_grad_()
    output = executor(hidden, view_of(layer), dataclasses.replace(weights, **leaves))
    assert output.dtype == dtype
    own = ("controller", "gains")
    parameters = {n: w for n, w in layer.named_parameters() if not n.startswith(own)}
    inputs = {"hidden": hidden, **leaves, **parameters}
    projection = make_hidden(*output.shape, dtype=torch.bfloat16, seed=9).to(dtype)
    grads = torch.autograd.grad((output * projection).sum(), list(inputs.values()))
    results = {"output": output.detach(), **dict(zip(inputs, grads, strict=True))}
    # A constant for each token in the gradient of p is invisible to anything with Σ p = 1.
    results["probs_ML"] -= results["probs_ML"].mean(-1, keepdim=True)
    # That λ = 1 − (1 − λ) is λσ/σ, too, makes one gradient of two, which may be split anyhow.
    if "shared_M1" in results:
        results["kept_M1"] = results["kept_M1"] - results.pop("shared_M1")
    return {name: value.double() for name, value in results.items()}


def widened(weights):
    changed = {
        name: value.double() for name in LEAVES if (value := getattr(weights, name)) is not None
    }
    return dataclasses.replace(weights, **changed)


def errors(actual, expected):
    assert actual.keys() == expected.keys()
    return {name: relative_error(actual[name], truth) for name, truth in expected.items()}


@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
@pytest.mark.parametrize(
    ("form", "name", "executor"), TRAINING, ids=lambda v: getattr(v, "__name__", v)
)
@pytest.mark.parametrize("gains", ["fixed", "learned"])
@pytest.mark.parametrize("mean", PATTERNS)
def test_training(mean, gains, form, name, executor, dtype):
    layer, hidden, weights = problem(mean, gains, form)
    expected = run(run_masked, layer, hidden, weights, torch.float64)
    found = errors(run(executor, layer, hidden, weights, dtype), expected)
    limits = {key: CANCELLED.get((key, dtype), TOLERANCE[dtype]) for key in found}
    wrong = {key: error for key, error in found.items() if not error <= limits[key]}
    assert not wrong


@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
@pytest.mark.parametrize(("form", "executor"), INFERENCE, ids=lambda v: getattr(v, "__name__", v))
@pytest.mark.parametrize("tokens", [TOKENS, BLOCK + 88], ids=["one-block", "two-blocks"])
@pytest.mark.parametrize("mean", PATTERNS)
def test_inference(mean, tokens, form, executor, dtype):
    layer, hidden, weights = problem(mean, "fixed", form, tokens)
    with torch.no_grad():
        expected = run_masked(hidden.double(), view_of(layer.double()), widened(weights))
        weights = widened(weights) if dtype == torch.float64 else weights
        actual = executor(hidden.to(dtype), view_of(layer.to(dtype)), weights)
    assert (actual.double() - expected).norm() <= TOLERANCE[dtype] * expected.norm()


def one_loop_too_few(hidden, view, weights):
    counts = (weights.loop_count - 1).clamp_min(1)
    return run_packed_training(hidden, view, dataclasses.replace(weights, loop_count=counts))


@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
def test_a_wrong_executor_is_found_in_every_dtype(dtype):
    """The control: tokens that leave one loop early are far outside the loosest tolerance."""
    layer, hidden, weights = problem("2.5", "fixed")
    expected = run(run_masked, layer, hidden, weights, torch.float64)
    found = run(one_loop_too_few, layer, hidden, weights, dtype)
    assert max(errors(found, expected).values()) > 0.2
