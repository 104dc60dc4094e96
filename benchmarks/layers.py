"""Cases of one layer: inference, the width pathway, training and its memory, decoding.

Legend: M tokens; a unit is one dense forward pass, 6·D·F FLOPs a token.
"""

import copy
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Tensor

from benchmarks.distributions import SHARES
from benchmarks.setup import LOOSE, MATRICES, TOLERANCE, Setup, captured, check_equal, set_up
from versatileffn.analysis.activations import saved_for_backward
from versatileffn.analysis.executed import FlopCounter
from versatileffn.analysis.speed import measure, spread, waits_for
from versatileffn.execution.kernels.tiles import timing_tiles
from versatileffn.ffn.plan import ReusePlan

CALLS = {"cpu": 1, "cuda": 10}
"""Calls that are timed as one: on CUDA the host may run ahead, as in a model."""
PEAK = 8192
"""Rows and columns of the matrix product that CUDA's peak is measured by."""
Found = dict[str, Any]


def timed(
    device: str,
    steps: Mapping[str, Callable[[], object]],
    pairs: Sequence[tuple[str, str, float]],
    budget: dict[str, Any],
    **checked: Any,
) -> Found:
    """Seconds of one call of each, in turns, and their ratios, beside what was `checked` before."""
    timings = measure(steps, wait=waits_for(device), calls=CALLS[device], **budget)
    return {**checked, "seconds": timings.spreads(), "ratios": timings.ratios(pairs)}


@torch.inference_mode()
def inference(
    budget: dict[str, Any],
    executors: list[str],
    against: str = "straightforward",
    device: str = "cpu",
    **settings: Any,
) -> Found:
    """Executors beside the dense FFN, `…/dense` divided by E[ℓ̂], and beside a reference.

    On CUDA also the share of a large matrix product's FLOP/s, `peak/…`.
    """
    setup = set_up(device=device, **settings)
    names = [against, *executors]
    if device == "cuda":
        with timing_tiles():
            setup.run("triton", setup.plan())
    run = {name: setup.runner(name) for name in ["dense", *names]}
    results = {n: [run[n]().clone()] for n in names}
    errors = check_equal(results, against, TOLERANCE[setup.dtype])
    total, mean, flops = int(setup.plan().loop_count.sum()), setup.mean_loops, {}
    for name in (n for n in executors if not n.endswith("-graph")):
        with FlopCounter() as counter:
            run[name]()
        count = setup.noise_ML.numel() if name == "masked" else total
        flops[name] = {"executed": counter.total, "planned": setup.unit * count}
    pairs = [(n, "dense", mean) for n in names] + [(against, n, 1.0) for n in executors]
    if device == "cuda":
        square = torch.randn(PEAK, PEAK, device=device, dtype=setup.hidden_MD.dtype)
        run["peak"] = partial(torch.matmul, square, square)
        pairs += [("peak", n, 2 * PEAK**3 / (setup.unit * total)) for n in names]
    return timed(device, run, pairs, budget, mean_loops=mean, errors=errors, flops=flops)


@torch.inference_mode()
def width(budget: dict[str, Any], **settings: Any) -> Found:
    """The same loops with and without the width pathway, beside the dense FFN."""
    setup = set_up(**settings)
    timings = measure({n: setup.runner(n) for n in ("dense", "packed", "no-width")}, **budget)
    rounds = zip(*(timings[n] for n in ("packed", "no-width", "dense")), strict=True)
    extra = spread([(with_ - without) / dense for with_, without, dense in rounds])
    return {"seconds": timings.spreads(), "extra": extra}


def training(
    budget: dict[str, Any],
    executors: list[str],
    against: str = "straightforward",
    device: str = "cpu",
    **settings: Any,
) -> Found:
    """Forward and backward pass; units are thirds of the dense training step."""
    setup = set_up(training=True, device=device, **settings)
    names = [against, *executors]
    gradients = {n: setup.train_step(n) for n in names}
    tolerance = LOOSE if device == "cuda" else TOLERANCE
    errors = check_equal(gradients, against, tolerance[setup.dtype])
    del gradients
    flops = {n: training_flops(setup, n) for n in executors}
    steps = {n: partial(setup.train_step, n) for n in ["dense", *names]}
    pairs = [(n, "dense", 1 / 3) for n in names] + [(against, n, 1.0) for n in executors]
    mean = setup.mean_loops
    return timed(device, steps, pairs, budget, mean_loops=mean, errors=errors, flops=flops)


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
    tokens, total = len(loops), int(loops.sum())
    planned = setup.unit * (tokens * longest + 2 * total)
    if executor == "masked":
        planned = 3 * setup.unit * tokens * longest
    elif executor == "recompute":
        again = total + int((loops < longest).sum())
        planned += setup.unit * (MATRICES - 1) // MATRICES * again
    return {"executed": counter.total, "planned": planned}


def memory(budget: dict[str, Any], tokens: int, **settings: Any) -> Found:
    """Values and bytes that each executor saves for the backward pass, for each further token.

    The difference between `tokens` and twice as many leaves out what doesn't grow with them: casts
    of weights under autocast, for one.
    """

    def saved(executor: str, count: int) -> Any:
        setup = set_up(training=True, tokens=count, **settings)
        plan = setup.plan(executor)
        with setup.autocast():
            return saved_for_backward(lambda: setup.run(executor, plan), setup.layer.parameters())

    found = {}
    for executor in ("dense", "straightforward", "masked", "packed", "recompute"):
        few, many = saved(executor, tokens), saved(executor, 2 * tokens)
        found[executor] = {
            "saved_values_per_token": (many.values - few.values) / tokens,
            "saved_bytes_per_token": (many.bytes - few.bytes) / tokens,
        }
    return {"memory": found}


DECODED = {
    "1 loop": (1.0, 0.0, 0.0, 0.0),
    "4 loops": (0.0, 0.0, 0.0, 1.0),
    "mixed": SHARES["2.5"],
}
"""Shares of tokens with 1 … 4 loops; one token alone can't be mixed."""


@torch.inference_mode()
def decode(
    budget: dict[str, Any],
    weight_bytes: int,
    tokens: int,
    executor: str = "auto",
    against: str = "straightforward",
    device: str = "cpu",
    **settings: Any,
) -> Found:
    """One token of each sequence through layers of `weight_bytes` in all, which no cache holds.

    The batch's loops are all 1, all 4, or mixed. On CUDA everything is a graph's replay.
    """
    settings |= {"tokens": tokens, "device": device}
    first = set_up(shares=DECODED["1 loop"], **settings)
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
        plan = set_up(shares=shares, **settings).plan()
        ways = {name: executor, f"{against}, {name}": against}
        # In one layer: through dozens, rounding alone takes two ways apart.
        outputs = {n: [through(setups[:1], way, plan)] for n, way in ways.items()}
        errors |= check_equal(outputs, f"{against}, {name}", TOLERANCE[first.dtype])
        if device == "cuda":  # packed's steps depend on the tokens, which no graph may
            ways.pop(f"{against}, {name}")
        run |= {n: captured(partial(through, setups, way, plan)) for n, way in ways.items()}
    run["dense"] = captured(partial(through, setups, "dense", first.plan()))
    pairs = [(n, "dense", 1.0) for n in run] + [("4 loops", "1 loop", 1.0)]
    return timed(device, run, pairs, budget, layers=layers, errors=errors)
