"""Every executor equals Algorithms 1 and 2, token by token, in outputs and gradients."""

import ast
import dataclasses
import sys
from pathlib import Path

import pytest
import torch

from support.layers import as_naive, gumbel, make_hidden, make_layer, relative_error
from versatileffn.execution.masked import run_masked
from versatileffn.execution.packed import run_packed
from versatileffn.execution.packed_training import run_packed_training, run_recomputed
from versatileffn.execution.plain import reads_plain_weights
from versatileffn.ffn import naive

VARIANTS = {
    "paper": {},
    "average": {"fusion": "average"},
    "width": {"fusion": "width"},
    "depth": {"fusion": "depth"},
    "soft": {"loop_mix": "soft"},
    "soft-average": {"loop_mix": "soft", "fusion": "average"},
    "learned": {"reuse_gains": "learned"},
    "learned-soft": {"reuse_gains": "learned", "loop_mix": "soft"},
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
    "plain-activation": {"gated": False, "activation": "gelu"},
    "biases": {"bias": True},
    "biases-learned": {"bias": True, "reuse_gains": "learned"},
    "biases-average-plain": {"bias": True, "fusion": "average", "gated": False},
    "normed-controller": {"normed_controller": True},
}
PACKED_TRAINING = [run_packed_training, run_recomputed]
TOLERANCE = {torch.float64: 1e-10, torch.float32: 1e-5}

pytestmark = pytest.mark.filterwarnings("ignore:.*belong to no expert.*:UserWarning")


def gradients(layer, hidden, output):
    """Gradients of a fixed random projection of the output, for H and every parameter."""
    projection = make_hidden(*output.shape, dtype=output.dtype, seed=9)
    inputs = [hidden, *layer.parameters()]
    return torch.autograd.grad((output * projection).sum(), inputs, allow_unused=True)


def training_errors(layer, hidden, executor) -> list[float]:
    """Errors against Algorithm 1: of the output, then of every gradient."""
    max_loops = layer.config.max_loops if layer.config.uses_depth else 1
    noise = gumbel(hidden, max_loops)
    controller_input = layer.norm(hidden) if layer.config.normed_controller else hidden
    plan = layer.controller(controller_input, gumbel_noise=noise)
    actual = executor(hidden, layer.norm, layer.mlp, plan)
    expected = naive.train(as_naive(layer), hidden, noise)
    errors = [relative_error(actual, expected)]
    pairs = zip(gradients(layer, hidden, actual), gradients(layer, hidden, expected), strict=True)
    for ours, truth in pairs:
        zero = torch.zeros(1, dtype=hidden.dtype)
        errors.append(
            relative_error(zero if ours is None else ours, zero if truth is None else truth)
        )
    return errors


@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
@pytest.mark.parametrize("settings", VARIANTS.values(), ids=VARIANTS.keys())
def test_masked_equals_algorithm_1(settings, dtype):
    layer = make_layer(dtype=dtype, **settings)
    layer.controller.tau = 0.7
    hidden = make_hidden(9, 16, dtype=dtype).requires_grad_()
    assert max(training_errors(layer, hidden, run_masked)) <= TOLERANCE[dtype]


@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
@pytest.mark.parametrize("executor", [run_masked, run_packed], ids=["masked", "packed"])
@pytest.mark.parametrize(
    "settings", [v for v in VARIANTS.values() if v.get("loop_mix") != "soft"], ids=str
)
def test_both_executors_equal_algorithm_2(settings, executor, dtype):
    layer = make_layer(dtype=dtype, **settings).eval()
    hidden = make_hidden(17, 16, dtype=dtype)
    with torch.no_grad():
        plan = layer.controller(layer.norm(hidden) if layer.config.normed_controller else hidden)
        actual = executor(hidden, layer.norm, layer.mlp, plan)
        expected, loops = naive.infer(as_naive(layer), hidden)
    assert relative_error(actual, expected) <= TOLERANCE[dtype]
    assert plan.loop_count.tolist() == loops


@pytest.mark.parametrize("executor", [run_masked, run_packed], ids=["masked", "packed"])
@pytest.mark.parametrize(
    "counts", [[4] * 6, [1] * 6, [4], [1], [1, 4, 2, 4, 3, 1], [2, 2, 3]], ids=str
)
@pytest.mark.parametrize("settings", [{}, {"bias": True, "reuse_gains": "learned"}], ids=str)
def test_prescribed_loop_counts(counts, executor, settings):
    """Loop heads that force given counts: all tokens at L, one token, every mixture."""
    layer = make_layer(**settings).eval()
    hidden = make_hidden(len(counts), 16)
    with torch.no_grad():
        targets = torch.nn.functional.one_hot(torch.tensor(counts) - 1, 4).double()
        layer.controller.loop_head.weight.copy_((torch.linalg.pinv(hidden) @ targets).T)
        plan = layer.controller(hidden)
        assert plan.loop_count.tolist() == counts
        actual = executor(hidden, layer.norm, layer.mlp, plan)
        expected, _ = naive.infer(as_naive(layer), hidden)
    assert relative_error(actual, expected) <= 1e-10


@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
@pytest.mark.parametrize("executor", PACKED_TRAINING, ids=["keep", "recompute"])
@pytest.mark.parametrize(
    "settings",
    [v for v in VARIANTS.values() if v.get("loop_mix") != "soft" and not v.get("bias")],
    ids=str,
)
def test_packed_training_equals_algorithm_1(settings, executor, dtype):
    layer = make_layer(dtype=dtype, **settings)
    layer.controller.tau = 0.7
    assert reads_plain_weights(layer.norm, layer.mlp)
    hidden = make_hidden(9, 16, dtype=dtype).requires_grad_()
    assert max(training_errors(layer, hidden, executor)) <= TOLERANCE[dtype]


@pytest.mark.parametrize("executor", PACKED_TRAINING, ids=["keep", "recompute"])
@pytest.mark.parametrize("counts", [[4] * 6, [1] * 6, [4], [1], [2, 2, 3], [3, 1, 1, 4]], ids=str)
def test_packed_training_at_prescribed_loop_counts(counts, executor):
    """Noise that forces given counts: all at L, none past 1, one token, every mixture."""
    layer, hidden = make_layer(), make_hidden(len(counts), 16).requires_grad_()
    noise = 50.0 * torch.nn.functional.one_hot(torch.tensor(counts) - 1, 4).double()
    plan = layer.controller(hidden, noise)
    assert plan.loop_count.tolist() == counts
    layer.controller.tau = 40.0
    plan = layer.controller(hidden, noise)
    actual = executor(hidden, layer.norm, layer.mlp, plan)
    expected = naive.train(as_naive(layer), hidden, noise)
    assert relative_error(actual, expected) <= 1e-10
    for ours, truth in zip(
        gradients(layer, hidden, actual), gradients(layer, hidden, expected), strict=True
    ):
        assert relative_error(ours, truth) <= 1e-10


def test_packed_training_without_a_gradient_in_the_plan():
    layer, hidden = make_layer(), make_hidden(9, 16).requires_grad_()
    with torch.no_grad():
        plan = layer.controller(hidden, gumbel(hidden, 4))
    results = []
    for executor in (run_masked, *PACKED_TRAINING):
        output = executor(hidden, layer.norm, layer.mlp, plan)
        results.append([output, *gradients(layer, hidden, output)])
    for masked, *packed in zip(*results, strict=True):
        if masked is not None:
            assert all(relative_error(ours, masked) <= 1e-10 for ours in packed)


@pytest.mark.parametrize("packed", PACKED_TRAINING, ids=["keep", "recompute"])
@pytest.mark.parametrize("gains", ["fixed", "learned"])
def test_packed_training_under_autocast(gains, packed):
    """bfloat16 has 8 bits of mantissa; both executors stay as close to float32 as each other."""
    layer = make_layer(dtype=torch.float32, reuse_gains=gains)
    hidden = make_hidden(40, 16, dtype=torch.float32).requires_grad_()
    noise = gumbel(hidden, 4)
    results = []
    for executor, enabled in ((run_masked, False), (run_masked, True), (packed, True)):
        plan = layer.controller(hidden, noise)
        with torch.autocast("cpu", torch.bfloat16, enabled=enabled):
            output = executor(hidden, layer.norm, layer.mlp, plan)
        results.append([output, *gradients(layer, hidden, output.float())])
    for exact, masked, ours in zip(*results, strict=True):
        assert ours.dtype == masked.dtype
        assert relative_error(ours, exact) <= 2 * relative_error(masked, exact) + 2e-2


def drop_width(hidden, norm, mlp, plan):
    return run_masked(hidden, norm, mlp, dataclasses.replace(plan, lam=plan.lam * 0))


def forget_early_exit(hidden, norm, mlp, plan):
    last = torch.zeros_like(plan.loop_probs)
    last[:, -1] = 1
    return run_masked(hidden, norm, mlp, dataclasses.replace(plan, loop_probs=last))


def detach_probabilities(hidden, norm, mlp, plan):
    return run_masked(
        hidden, norm, mlp, dataclasses.replace(plan, loop_probs=plan.loop_probs.detach())
    )


def detach_gates(hidden, norm, mlp, plan):
    return run_masked(hidden, norm, mlp, dataclasses.replace(plan, gates=plan.gates.detach()))


@pytest.mark.parametrize(
    "wrong", [drop_width, forget_early_exit, detach_probabilities, detach_gates]
)
def test_a_wrong_executor_fails_the_same_check(wrong):
    """The control: each mistake, two of them in gradients only, is far outside the tolerance."""
    layer = make_layer()
    hidden = make_hidden(9, 16).requires_grad_()
    assert max(training_errors(layer, hidden, wrong)) > 1e-3


def test_one_expert_per_token_trains_its_router():
    layer = make_layer(top_k=1)
    layer(make_hidden(8, 16)).hidden.pow(2).sum().backward()
    assert layer.controller.router.weight.grad.abs().max() > 1e-6


@pytest.mark.parametrize("executor", ["masked", "auto"])
def test_bfloat16_follows_float32(executor):
    """bfloat16 has 8 bits of mantissa, hence 3e-2; the plan is given, so no tie can flip."""
    layer = make_layer(dtype=torch.float32, execution=executor).eval()
    hidden = make_hidden(12, 16, dtype=torch.float32)
    with torch.no_grad():
        plan = layer.controller(hidden)
        expected = layer(hidden, plan).hidden
        actual = layer.to(torch.bfloat16)(hidden.bfloat16(), plan).hidden
        free_running = layer(hidden.bfloat16()).hidden
    assert actual.dtype == free_running.dtype == torch.bfloat16
    assert relative_error(actual.float(), expected) < 3e-2
    assert free_running.isfinite().all()


def test_bfloat16_trains():
    layer = make_layer(dtype=torch.bfloat16, reuse_gains="learned", gains_at=0.5)
    out = layer(make_hidden(6, 16, dtype=torch.bfloat16))
    (out.hidden.float().pow(2).mean() + out.balance_loss).backward()
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


@pytest.mark.parametrize("packed", PACKED_TRAINING, ids=["keep", "recompute"])
@pytest.mark.parametrize("frozen", ["norm", "mlp", "controller"])
def test_packed_training_with_frozen_parts(frozen, packed):
    layer, hidden = make_layer(reuse_gains="learned"), make_hidden(9, 16).requires_grad_()
    getattr(layer, frozen).requires_grad_(False)
    noise, results = gumbel(hidden, 4), []
    for executor in (run_masked, packed):
        output = executor(hidden, layer.norm, layer.mlp, layer.controller(hidden, noise))
        trained = [hidden, *(p for p in layer.parameters() if p.requires_grad)]
        results.append([output, *torch.autograd.grad(output.square().sum(), trained)])
    for masked, ours in zip(*results, strict=True):
        assert relative_error(ours, masked) <= 1e-10


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
@pytest.mark.parametrize("executor", [run_masked, run_packed_training], ids=["masked", "packed"])
def test_cuda_equals_the_cpu(executor, dtype):
    results = []
    for device in ("cpu", "cuda"):
        layer = make_layer(dtype=dtype).to(device)
        hidden = make_hidden(9, 16, dtype=dtype).to(device).requires_grad_()
        noise = gumbel(hidden.cpu(), 4).to(device)
        output = executor(hidden, layer.norm, layer.mlp, layer.controller(hidden, noise))
        grads = torch.autograd.grad(output.square().sum(), [hidden, *layer.parameters()])
        results.append([output, *grads])
    for expected, actual in zip(*results, strict=True):
        assert relative_error(actual.cpu(), expected) <= TOLERANCE[dtype]
