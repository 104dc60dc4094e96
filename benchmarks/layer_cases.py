"""Cases of layers: inference, the width pathway's extra, training and its memory, decoding.

Legend: M tokens, D d_model, F d_hidden, L max_loops; a unit is one dense forward pass, 6·D·F FLOPs
a token.
"""

import copy
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Tensor

from benchmarks.distributions import SHARES
from benchmarks.flops import FlopCounter
from benchmarks.layers import MATRICES, TOLERANCE, Setup, check_equal, runners, set_up
from versatileffn.analysis.saved import Saved, saved_for_backward
from versatileffn.analysis.timing import Budget, Timings, measure, spread
from versatileffn.ffn.plan import ReusePlan


def unit_flops(setup: Setup) -> int:
    """2·3·D·F, one dense forward pass of one token."""
    return 2 * MATRICES * setup.layer.mlp.down_proj.weight.numel()


def ratios(timings: Timings, pairs: Sequence[tuple[str, str, float]]) -> dict[str, Any]:
    """Spreads of seconds[a] / (factor · seconds[b]), as `a/b`."""
    return {f"{a}/{b}": timings.ratio(a, b, factor)._asdict() for a, b, factor in pairs}


@torch.inference_mode()
def inference(budget: Budget, executors: list[str], **settings: Any) -> dict[str, Any]:
    """Executors beside the dense FFN; `packed/dense` is divided by E[ℓ̂]."""
    setup = set_up(**settings)
    names = ["straightforward", *executors]
    run = runners(setup, ["dense", *names])
    errors = check_equal({n: [run[n]()] for n in names}, names[0], TOLERANCE[setup.dtype])
    loops = setup.plan().loop_count
    mean = loops.double().mean().item()
    planned = {"packed": int(loops.sum()), "masked": setup.noise_ML.numel()}
    flops = {}
    for name in executors:
        with FlopCounter() as counter:
            run[name]()
        flops[name] = {"executed": counter.total, "planned": unit_flops(setup) * planned[name]}
    timings = measure(run, budget)
    pairs = [(n, "dense", mean) for n in names] + [(names[0], n, 1.0) for n in executors]
    return {
        "mean_loops": mean, "errors": errors, "flops": flops,
        "seconds": timings.to_dict(), "ratios": ratios(timings, pairs),
    }  # fmt: skip


@torch.inference_mode()
def width(budget: Budget, **settings: Any) -> dict[str, Any]:
    """The same loops with and without the width pathway, beside the dense FFN."""
    timings = measure(runners(set_up(**settings), ["dense", "packed", "no-width"]), budget)
    rounds = zip(*(timings.seconds[n] for n in ("packed", "no-width", "dense")), strict=True)
    extra = spread([(with_ - without) / dense for with_, without, dense in rounds])
    return {"seconds": timings.to_dict(), "extra": extra._asdict()}


def training(budget: Budget, executors: list[str], **settings: Any) -> dict[str, Any]:
    """Forward and backward pass; units are thirds of the dense training step."""
    setup = set_up(training=True, **settings)
    names = ["straightforward", *executors]
    gradients = {n: setup.train_step(n) for n in names}
    errors = check_equal(gradients, names[0], TOLERANCE[setup.dtype])
    del gradients
    flops = {n: training_flops(setup, n) for n in executors}
    timings = measure({n: partial(setup.train_step, n) for n in ["dense", *names]}, budget)
    pairs = [(n, "dense", 1 / 3) for n in names] + [(names[0], n, 1.0) for n in executors]
    with torch.no_grad():
        mean = setup.plan().loop_count.double().mean().item()
    return {
        "mean_loops": mean, "errors": errors, "flops": flops,
        "seconds": timings.to_dict(), "ratios": ratios(timings, pairs),
    }  # fmt: skip


def training_flops(setup: Setup, executor: str) -> dict[str, int]:
    """FLOPs of one executor's training step, without the controller: executed, and planned.

    Planned are L loops forward and, for `packed`, ℓ̂ backward at twice the work; `masked`
    differentiates all L; `recompute` does an up-projection again for each loop it needs.
    """
    with torch.no_grad():
        plan = setup.plan()
    assert plan.gates is not None
    leaves = [t.clone().requires_grad_() for t in (plan.loop_probs, plan.lam, plan.gates)]
    plan = replace(plan, loop_probs=leaves[0], lam=leaves[1], gates=leaves[2])
    inputs = [setup.hidden_MD, *setup.layer.mlp.parameters(), *leaves]
    with FlopCounter() as counter:
        with setup.autocast():
            output_MD = setup.run(executor, plan)
        torch.autograd.grad(output_MD.float().sum(), inputs)
    loops, longest = plan.loop_count, plan.max_loops
    unit, tokens, total = unit_flops(setup), len(loops), int(loops.sum())
    planned = unit * (tokens * longest + 2 * total)
    if executor == "masked":
        planned = 3 * unit * tokens * longest
    elif executor == "recompute":
        again = total + int((loops < longest).sum())
        planned += unit * (MATRICES - 1) // MATRICES * again
    return {"executed": counter.total, "planned": planned}


DECODED = {
    "1 loop": (1.0, 0.0, 0.0, 0.0),
    "4 loops": (0.0, 0.0, 0.0, 1.0),
    "mixed": SHARES["2.5"],
}
"""Shares of tokens with 1 … 4 loops; one token alone can't be mixed."""


@torch.inference_mode()
def decode(budget: Budget, weight_bytes: int, tokens: int, **settings: Any) -> dict[str, Any]:
    """One token of each sequence through layers of `weight_bytes` in all, which no cache holds.

    The batch's loops are all 1, all 4, or mixed; `auto` carries them out.
    """
    first = set_up(tokens=tokens, shares=DECODED["1 loop"], **settings)
    # Small updates keep the states of dozens of layers of random weights finite.
    first.layer.mlp.down_proj.weight.mul_(0.1)
    layer_bytes = sum(p.numel() * p.element_size() for p in first.layer.mlp.parameters())
    layers = max(2, -(-weight_bytes // layer_bytes))
    setups = [replace(first, layer=copy.deepcopy(first.layer)) for _ in range(layers)]

    def through(setups: list[Setup], executor: str, plan: ReusePlan) -> Tensor:
        hidden_MD = first.hidden_MD
        for setup in setups:
            hidden_MD = replace(setup, hidden_MD=hidden_MD).run(executor, plan)
        return hidden_MD

    run: dict[str, Callable[[], Tensor]] = {}
    errors: dict[str, float] = {}
    for name, shares in DECODED.items():
        if name == "mixed" and tokens == 1:
            continue
        plan = set_up(tokens=tokens, shares=shares, **settings).plan()
        slow = f"straightforward, {name}"
        run[name] = partial(through, setups, "auto", plan)
        run[slow] = partial(through, setups, "straightforward", plan)
        # In one layer: through dozens, rounding alone takes two ways apart.
        ways = {name: "auto", slow: "straightforward"}
        outputs = {n: [through(setups[:1], way, plan)] for n, way in ways.items()}
        errors |= check_equal(outputs, slow, TOLERANCE[first.dtype])
    run["dense"] = partial(through, setups, "dense", first.plan())
    timings = measure(run, budget)
    pairs = [(n, "dense", 1.0) for n in run] + [("4 loops", "1 loop", 1.0)]
    return {
        "layers": layers, "errors": errors,
        "seconds": timings.to_dict(), "ratios": ratios(timings, pairs),
    }  # fmt: skip


def memory(budget: Budget, tokens: int, **settings: Any) -> dict[str, Any]:
    """Values and bytes that each executor saves for the backward pass, for each further token.

    The difference between `tokens` and twice as many leaves out what doesn't grow with them: casts
    of weights under autocast, for one.
    """
    found = {}
    for executor in ("dense", "straightforward", "masked", "packed", "recompute"):
        few, many = (_saved(executor, tokens=n, **settings) for n in (tokens, 2 * tokens))
        found[executor] = {
            "saved_values_per_token": (many.values - few.values) / tokens,
            "saved_bytes_per_token": (many.bytes - few.bytes) / tokens,
        }
    return {"memory": found}


def _saved(executor: str, **settings: Any) -> Saved:
    setup = set_up(training=True, **settings)
    plan = setup.plan(executor)
    with setup.autocast():
        return saved_for_backward(lambda: setup.run(executor, plan), setup.layer.parameters())
