"""Cases of one layer: inference, the width pathway's extra, the alternatives, the training step.

Legend: M tokens, D d_model, F d_hidden, L max_loops; a unit is one dense forward pass, 6·D·F FLOPs
a token.
"""

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import torch

from versatileffn.bench.alternatives import alternatives
from versatileffn.bench.flops import FlopCounter
from versatileffn.bench.layers import (
    MATRICES,
    TOLERANCE,
    Setup,
    check_equal,
    runners,
    set_up,
)
from versatileffn.bench.memory import peak_bytes, saved_per_token
from versatileffn.bench.timing import Budget, Timings, measure, waits_for


def unit_flops(setup: Setup) -> int:
    """2·3·D·F, one dense forward pass of one token."""
    return 2 * MATRICES * setup.layer.mlp.down_proj.weight.numel()


def mean_loops(setup: Setup) -> float:
    """E[ℓ̂] of a layer's tokens."""
    with torch.no_grad():
        return setup.plan().loop_count.double().mean().item()


def ratios(timings: Timings, pairs: list[tuple[str, str, float]]) -> dict[str, Any]:
    """Spreads of seconds[a] / (factor · seconds[b]), as `a/b`."""
    return {f"{a}/{b}": timings.ratio(a, b, factor)._asdict() for a, b, factor in pairs}


@torch.inference_mode()
def inference(budget: Budget, device: str, executors: list[str], **settings: Any) -> dict[str, Any]:
    """Executors beside the dense FFN; `packed/dense` is divided by E[ℓ̂]."""
    setup = set_up(device=device, **settings)
    run = runners(setup, ["dense", "straightforward", *executors])
    errors = check_equal(
        {name: [run[name]()] for name in ["straightforward", *executors]},
        "straightforward",
        TOLERANCE[setup.dtype],
    )
    mean = mean_loops(setup)
    planned = {"packed": mean, "masked": setup.noise_ML.shape[-1]}
    flops = {}
    for name in executors:
        with FlopCounter() as counter:
            run[name]()
        planned_flops = round(unit_flops(setup) * len(setup.hidden_MD) * planned[name])
        flops[name] = {"executed": counter.total, "planned": planned_flops}
    timings = measure(run, budget, waits_for(device))
    pairs = [(name, "dense", mean) for name in ["straightforward", *executors]]
    pairs += [("straightforward", name, 1.0) for name in executors]
    return {
        "mean_loops": mean,
        "errors": errors,
        "flops": flops,
        "seconds": timings.to_dict(),
        "ratios": ratios(timings, pairs),
    }


@torch.inference_mode()
def width(budget: Budget, device: str, **settings: Any) -> dict[str, Any]:
    """The same loops with and without the width pathway, beside the dense FFN."""
    setup = set_up(device=device, **settings)
    run = runners(setup, ["dense", "packed", "no-width"])
    timings = measure(run, budget, waits_for(device))
    return {
        "mean_loops": mean_loops(setup),
        "seconds": timings.to_dict(),
        "extra": timings.extra("packed", "no-width", "dense")._asdict(),
    }


@torch.inference_mode()
def others(budget: Budget, device: str, **settings: Any) -> dict[str, Any]:
    """k-loop and mixtures of experts beside the dense FFN."""
    setup = set_up(device=device, **settings)
    run = runners(setup, ["dense", "packed"]) | alternatives(setup.layer, setup.hidden_MD)
    errors = check_equal(
        {name: [run[name]()] for name in ("moe", "moe-transformers")},
        "moe",
        TOLERANCE[setup.dtype],
    )
    timings = measure(run, budget, waits_for(device))
    pairs = [(name, "dense", 1.0) for name in run if name != "dense"]
    return {
        "mean_loops": mean_loops(setup),
        "errors": errors,
        "seconds": timings.to_dict(),
        "ratios": ratios(timings, pairs),
    }


def training(budget: Budget, device: str, executors: list[str], **settings: Any) -> dict[str, Any]:
    """Forward and backward pass; units are thirds of the dense training step."""
    setup = set_up(device=device, training=True, **settings)
    names = ["straightforward", *executors]
    errors = check_equal(
        {name: setup.train_step(name) for name in names},
        "straightforward",
        TOLERANCE[setup.dtype],
    )
    run = {name: partial(setup.train_step, name) for name in ["dense", *names]}
    timings = measure(run, budget, waits_for(device))
    pairs = [(name, "dense", 1 / 3) for name in names]
    pairs += [("straightforward", name, 1.0) for name in names[1:]]
    return {
        "mean_loops": mean_loops(setup),
        "errors": errors,
        "flops": {name: training_flops(setup, name) for name in names[1:]},
        "seconds": timings.to_dict(),
        "ratios": ratios(timings, pairs),
    }


def training_flops(setup: Setup, executor: str) -> dict[str, int | None]:
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


def memory(
    budget: Budget, device: str, executors: list[str], peak: bool, **settings: Any
) -> dict[str, Any]:
    """Saved values and bytes a token, and the peak of a training step, for each executor."""
    settings = {**settings, "device": device}
    found = {}
    for name in executors:
        saved = saved_per_token(name, **settings)
        found[name] = {
            "saved_values_per_token": saved.values,
            "saved_bytes_per_token": saved.bytes,
            "peak_bytes": peak_bytes(name, torch.get_num_threads(), **settings) if peak else None,
        }
    return {"memory": found}


def allocator(budget: Budget, device: str, **settings: Any) -> dict[str, Any]:
    """Dense and packed, inference and training, in whatever allocator setting this process has."""
    setup, learner = (set_up(device=device, training=t, **settings) for t in (False, True))
    with torch.no_grad():
        plan = setup.plan()

    @torch.inference_mode()
    def infer(name: str) -> None:
        setup.run(name, plan)

    run: dict[str, Callable[[], object]] = {
        f"{name} inference": partial(infer, name) for name in ("dense", "packed")
    }
    run |= {f"{name} training": partial(learner.train_step, name) for name in ("dense", "packed")}
    return {"seconds": measure(run, budget, waits_for(device)).to_dict()}
