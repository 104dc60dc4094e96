"""Every executor equals Algorithms 1 and 2, token by token, in outputs and gradients: for every
form that an FFN may have, and every way to decide."""

import ast
import dataclasses
import sys
from pathlib import Path

import pytest
import torch

from support.layers import (
    FORMS,
    PLANS,
    as_naive,
    decide,
    execute_with,
    gumbel,
    make_any,
    make_hidden,
    make_layer,
    relative_error,
    view_of,
)
from versatileffn.execution.masked import run_masked
from versatileffn.execution.operators import run_operator, why_no_operator
from versatileffn.execution.packed import run_packed
from versatileffn.execution.packed_training import (
    run_packed_training,
    run_recomputed,
    run_stepwise_training,
)
from versatileffn.execution.stepwise import run_stepwise
from versatileffn.ffn import naive
from versatileffn.ffn.config import Versatile

SETTINGS = {
    "soft-average": {"loop_mix": "soft", "fusion": "average"},
    "learned-width": {"reuse_gains": "learned", "fusion": "width"},
    "learned-depth": {"reuse_gains": "learned", "fusion": "depth"},
    "one-expert-per-token": {"top_k": 1},
    "one-expert": {"num_experts": 1, "top_k": 1},
    "small-single-expert": {"num_experts": 1, "top_k": 1, "d_expert": 5},
    "all-experts": {"num_experts": 4, "top_k": 4},
    "one-loop": {"max_loops": 1},
    "seven-loops": {"max_loops": 7},
    "fractional-stride": {"num_experts": 5, "d_expert": 6},
    "unused-neurons": {"num_experts": 3, "d_expert": 4, "reuse_gains": "learned"},
    "biases-average-plain": {"bias": True, "fusion": "average", "gated": False},
    "normed-controller": {"normed_controller": True},
}
CASES = {
    **{f"{form}/{plan}": (form, plan) for form in FORMS for plan in PLANS},
    **{f"settings/{name}": (None, name) for name in SETTINGS},
}
TOLERANCE = {torch.float64: 1e-10, torch.float32: 1e-5}
PACKED_TRAINING = [run_packed_training, run_recomputed]

pytestmark = pytest.mark.filterwarnings("ignore:.*belong to no expert.*:UserWarning")
NARROW = (None, "swiglu", "fused-biases", "sandwich")  # forms that are tried in float32, too
every_case = pytest.mark.parametrize(
    ("form", "name", "dtype"),
    [
        pytest.param(*case, dtype, id=f"{name}-{dtype}")
        for name, case in CASES.items()
        for dtype in TOLERANCE
        if dtype == torch.float64 or case[0] in NARROW
    ],
)
every_dtype = pytest.mark.parametrize("dtype", TOLERANCE, ids=str)


def build(form, name, dtype):
    if form is None:
        return make_layer(dtype=dtype, **SETTINGS[name])
    return make_any(form, PLANS[name], dtype=dtype)


def executors(layer, training) -> dict:
    """All that are valid for a layer, but for how they keep what they keep the same."""
    view = view_of(layer)
    found = {"masked": run_masked}
    if getattr(layer.config, "loop_mix", "hard") == "soft":
        return found
    if not view.merges:
        return found | {"stepwise": run_stepwise_training if training else run_stepwise}
    if why_no_operator(view) is None:
        found["operator"] = run_operator
    if not training:
        return found | {"packed": run_packed}
    return found | {"keep": run_packed_training, "recompute": run_recomputed}


def gradients(layer, hidden, output):
    """Gradients of a fixed random projection of the output, for H and every parameter."""
    projection = make_hidden(*output.shape, dtype=output.dtype, seed=9)
    inputs = [hidden, *layer.parameters()]
    return torch.autograd.grad(
        (output * projection).sum(), inputs, retain_graph=True, allow_unused=True,
        materialize_grads=True,
    )  # fmt: skip


def draws_noise(layer):
    return getattr(layer.config, "uses_depth", False) and hasattr(layer.controller, "tau")


def training_errors(layer, hidden, run, truth=None) -> list[float]:
    """Errors against Algorithm 1: of the output, then of every gradient."""
    noise = gumbel(hidden, layer.config.loops) if draws_noise(layer) else None
    if truth is None:
        expected = naive.train(as_naive(layer), hidden, noise)
        truth = [expected, *gradients(layer, hidden, expected)]
    actual = execute_with(run, layer, hidden, decide(layer, hidden, noise))
    ours = [actual, *gradients(layer, hidden, actual)]
    return [relative_error(a, b) for a, b in zip(ours, truth, strict=True)], truth


@every_case
def test_training_equals_algorithm_1(form, name, dtype):
    layer, truth = build(form, name, dtype), None
    if draws_noise(layer):
        layer.controller.tau = 0.7
    hidden, wrong = make_hidden(7, 16, dtype=dtype).requires_grad_(), {}
    for executor, run in executors(layer, training=True).items():
        errors, truth = training_errors(layer, hidden, run, truth)
        if max(errors) > TOLERANCE[dtype]:
            wrong[executor] = errors
    assert not wrong


@every_case
def test_inference_equals_algorithm_2(form, name, dtype):
    layer = build(form, name, dtype).eval()
    hidden = make_hidden(17, 16, dtype=dtype)
    soft = getattr(layer.config, "loop_mix", "hard") == "soft"
    with torch.no_grad():
        plan = decide(layer, hidden)
        if soft:  # Algorithm 2 has no soft mix: its inference is Algorithm 1 without noise
            expected, loops = naive.train(as_naive(layer), hidden), plan.loop_count.tolist()
        else:
            expected, loops = naive.infer(as_naive(layer), hidden)
        errors = {
            executor: relative_error(execute_with(run, layer, hidden, plan), expected)
            for executor, run in executors(layer, training=False).items()
        }
    assert {e for e, error in errors.items() if error > TOLERANCE[dtype]} == set()
    assert plan.loop_count.tolist() == loops


COUNTS = [[4] * 6, [1] * 6, [4], [1], [1, 4, 2, 4, 3, 1], [2, 2, 3], [3, 1, 1, 4]]


@pytest.mark.parametrize("counts", COUNTS, ids=str)
@pytest.mark.parametrize("form", ["swiglu", "fused-biases", "sandwich"])
def test_prescribed_loop_counts(counts, form):
    """Loop heads that force given counts: all tokens at L, one token, every mixture."""
    layer = make_any(form, Versatile(reuse_gains="learned")).eval()
    hidden = make_hidden(len(counts), 16)
    with torch.no_grad():
        targets = torch.nn.functional.one_hot(torch.tensor(counts) - 1, 4).double()
        layer.controller.loop_head.weight.copy_((torch.linalg.pinv(hidden) @ targets).T)
        plan = decide(layer, hidden)
        assert plan.loop_count.tolist() == counts
        expected, _ = naive.infer(as_naive(layer), hidden)
        for run in executors(layer, training=False).values():
            assert relative_error(execute_with(run, layer, hidden, plan), expected) <= 1e-10


@pytest.mark.parametrize("counts", COUNTS, ids=str)
@pytest.mark.parametrize("form", ["swiglu", "fused-biases", "sandwich"])
def test_training_at_prescribed_loop_counts(counts, form):
    """Noise that forces given counts: all at L, none past 1, one token, every mixture."""
    layer, hidden = make_any(form, Versatile()), make_hidden(len(counts), 16).requires_grad_()
    noise = 50.0 * torch.nn.functional.one_hot(torch.tensor(counts) - 1, 4).double()
    layer.controller.tau = 40.0
    plan = decide(layer, hidden, noise)
    assert plan.loop_count.tolist() == counts
    expected = naive.train(as_naive(layer), hidden, noise)
    truth = [expected, *gradients(layer, hidden, expected)]
    for run in executors(layer, training=True).values():
        actual = execute_with(run, layer, hidden, plan)
        ours = [actual, *gradients(layer, hidden, actual)]
        assert max(relative_error(a, b) for a, b in zip(ours, truth, strict=True)) <= 1e-10


@pytest.mark.parametrize("form", ["swiglu", "layer-norm", "post-norm"])
def test_training_without_a_gradient_in_the_plan(form):
    layer, hidden = make_any(form, Versatile()), make_hidden(9, 16).requires_grad_()
    with torch.no_grad():
        plan = decide(layer, hidden, gumbel(hidden, 4))
    results = []
    for run in executors(layer, training=True).values():
        output = execute_with(run, layer, hidden, plan)
        results.append([output, *gradients(layer, hidden, output)])
    for masked, *packed in zip(*results, strict=True):
        assert all(relative_error(ours, masked) <= 1e-10 for ours in packed)


@pytest.mark.parametrize("gains", ["fixed", "learned"])
@pytest.mark.parametrize("form", ["swiglu", "fused-biases", "sandwich"])
def test_training_under_autocast(form, gains):
    """bfloat16 has 8 bits of mantissa; the executors stay as close to float32 as each other."""
    layer = make_any(form, Versatile(reuse_gains=gains), dtype=torch.float32)
    hidden = make_hidden(40, 16, dtype=torch.float32).requires_grad_()
    noise = gumbel(hidden, 4)
    runs = [(run_masked, False), *((r, True) for r in executors(layer, training=True).values())]
    results = []
    for run, enabled in runs:
        plan = decide(layer, hidden, noise)
        with torch.autocast("cpu", torch.bfloat16, enabled=enabled):
            output = execute_with(run, layer, hidden, plan)
        results.append([output, *gradients(layer, hidden, output.float())])
    for exact, masked, *others in zip(*results, strict=True):
        for ours in others:
            assert ours.dtype == masked.dtype
            assert relative_error(ours, exact) <= 2 * relative_error(masked, exact) + 2e-2


def drop_width(hidden, view, weights):
    nothing = torch.zeros_like(weights.kept_M1)
    return run_masked(
        hidden, view, dataclasses.replace(weights, kept_M1=nothing + 1, routed_M1=nothing)
    )


def forget_early_exit(hidden, view, weights):
    last = torch.zeros_like(weights.probs_ML)
    last[:, -1] = 1
    return run_masked(hidden, view, dataclasses.replace(weights, probs_ML=last))


def detach_probabilities(hidden, view, weights):
    return run_masked(
        hidden, view, dataclasses.replace(weights, probs_ML=weights.probs_ML.detach())
    )


def detach_gates(hidden, view, weights):
    return run_masked(
        hidden, view, dataclasses.replace(weights, gates_MN=weights.gates_MN.detach())
    )


def forget_scale(hidden, view, weights):
    return run_packed_training(hidden, view._replace(scale=0.5 * view.scale), weights)


def one_bias_too_many(hidden, view, weights):
    update = run_packed_training(hidden, view, weights)
    return update if view.down_bias is None else update + view.down_bias


def forget_post_norm(hidden, view, weights):
    return run_masked(hidden, view._replace(post_norm=None), weights)


WRONG = {
    drop_width: "swiglu",
    forget_early_exit: "swiglu",
    detach_probabilities: "sandwich",
    detach_gates: "fused",
    forget_scale: "scale",
    one_bias_too_many: "plain-biases",
    forget_post_norm: "post-norm",
}


@pytest.mark.parametrize(("wrong", "form"), WRONG.items(), ids=lambda v: getattr(v, "__name__", v))
def test_a_wrong_executor_fails_the_same_check(wrong, form):
    """The control: each mistake, two of them in gradients only, is far outside the tolerance."""
    layer = make_any(form, Versatile())
    hidden = make_hidden(9, 16).requires_grad_()
    assert max(training_errors(layer, hidden, wrong)[0]) > 1e-3


def test_one_expert_per_token_trains_its_router():
    layer = make_layer(top_k=1)
    layer(make_hidden(8, 16)).hidden.pow(2).sum().backward()
    assert layer.controller.router.weight.grad.abs().max() > 1e-6


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("execution", ["masked", "auto"])
def test_bfloat16_follows_float32(execution, form):
    """bfloat16 has 8 bits of mantissa, hence 3e-2 (and 6e-2 where a norm follows, which divides by
    what may be small); the plan is given, so no tie can flip."""
    layer = make_any(form, Versatile(), dtype=torch.float32).eval()
    layer.execution = execution
    hidden = make_hidden(12, 16, dtype=torch.float32)
    with torch.no_grad():
        plan = decide(layer, hidden)
        expected = layer(hidden, plan)
        actual = layer.to(torch.bfloat16)(hidden.bfloat16(), plan)
        free_running = layer(hidden.bfloat16())
    assert actual.dtype == free_running.dtype == torch.bfloat16
    assert relative_error(actual, expected) < (6e-2 if FORMS[form].post_norm else 3e-2)
    assert free_running.isfinite().all()


@pytest.mark.parametrize("form", FORMS)
def test_bfloat16_trains(form):
    config = Versatile(reuse_gains="learned")
    layer = make_any(form, config, dtype=torch.bfloat16, gains_at=0.5)
    layer(make_hidden(6, 16, dtype=torch.bfloat16)).float().pow(2).mean().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in layer.parameters())


def test_the_truth_imports_torch_and_the_standard_library_alone():
    tree = ast.parse(Path(naive.__file__).read_text(encoding="utf-8"))
    imported = {
        name.split(".")[0]
        for node in ast.walk(tree)
        if isinstance(node, ast.Import | ast.ImportFrom)
        for name in (
            [node.module or ""]
            if isinstance(node, ast.ImportFrom)
            else [alias.name for alias in node.names]
        )
    }
    assert "torch" in imported
    assert imported <= {"torch"} | sys.stdlib_module_names


@pytest.mark.parametrize("form", ["fused-biases", "layer-norm", "sandwich"])
@pytest.mark.parametrize("frozen", ["norm", "proj", "down", "controller"])
def test_training_with_frozen_parts(frozen, form):
    layer = make_any(form, Versatile(reuse_gains="learned"))
    getattr(layer, frozen).requires_grad_(False)
    hidden, results = make_hidden(9, 16).requires_grad_(), []
    noise = gumbel(hidden, 4)
    for run in executors(layer, training=True).values():
        output = execute_with(run, layer, hidden, decide(layer, hidden, noise))
        trained = [hidden, *(p for p in layer.parameters() if p.requires_grad)]
        results.append([output, *torch.autograd.grad(output.square().sum(), trained)])
    for masked, *others in zip(*results, strict=True):
        assert all(relative_error(ours, masked) <= 1e-10 for ours in others)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("form", ["swiglu", "sandwich"])
@every_dtype
def test_cuda_equals_the_cpu(dtype, form):
    results = []
    for device in ("cpu", "cuda"):
        layer = make_any(form, Versatile(), dtype=dtype).to(device)
        hidden = make_hidden(9, 16, dtype=dtype).to(device).requires_grad_()
        noise = gumbel(hidden.cpu(), 4).to(device)
        output = layer(hidden, decide(layer, hidden, noise))
        grads = torch.autograd.grad(output.square().sum(), [hidden, *layer.parameters()])
        results.append([output, *grads])
    for expected, actual in zip(*results, strict=True):
        assert relative_error(actual.cpu(), expected) <= TOLERANCE[dtype]
