"""Cases of one layer: inference and training, the width pathway, memory, decoding.

Legend: M tokens; a unit is one dense forward pass, 6·D·F FLOPs a token.
"""

import copy
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Tensor

from benchmarks.distributions import SHARES
from benchmarks.setup import TOLERANCE, Setup, captured, check_equal, set_up
from versatileffn.analysis.activations import saved_for_backward
from versatileffn.analysis.speed import measure, spread, waits_for
from versatileffn.execution.kernels.tiles import timing_tiles
from versatileffn.ffn.plan import ReusePlan

CALLS = {"cpu": 1, "cuda": 10}
"""Calls that are timed as one: on CUDA the host may run ahead, as in a model."""
PEAK = 8192
"""Rows and columns of the matrix product that CUDA's peak is measured by."""
Found = dict[str, Any]


def executors_in_turns(
    budget: dict[str, Any],
    executors: list[str],
    against: str = "straightforward",
    device: str = "cpu",
    training: bool = False,
    **settings: Any,
) -> Found:
    """Executors beside the dense FFN and beside a reference, in inference or training steps.

    `…/dense` is divided by E[ℓ̂]; when training, it counts thirds of the dense step. Inference on
    CUDA also has the share of a large matrix product's FLOP/s, `peak/…`.
    """
    names, kernels = [against, *executors], device == "cuda" and not training
    with torch.inference_mode(not training):
        setup = set_up(training=training, device=device, **settings)
        if kernels:
            with timing_tiles():
                setup.run("triton", setup.plan())
        run = {n: setup.step(n) for n in ["dense", *names]}
        errors = check_equal({n: run[n]() for n in names}, against, TOLERANCE[setup.dtype])
        counts_M = setup.plan().loop_count
        mean = counts_M.double().mean().item()
        pairs = [(n, "dense", 1 / 3 if training else mean) for n in names]
        pairs += [(against, n, 1.0) for n in executors]
        if kernels:
            square = torch.randn(PEAK, PEAK, device=device, dtype=setup.hidden_MD.dtype)
            run["peak"] = lambda: [square @ square]
            flops = 6 * setup.layer.mlp.down_proj.weight.numel() * int(counts_M.sum())
            pairs += [("peak", n, 2 * PEAK**3 / flops) for n in names]
        timings = measure(run, wait=waits_for(device), calls=CALLS[device], **budget)
    spreads = {"seconds": timings.spreads(), "ratios": timings.ratios(pairs)}
    return {"mean_loops": mean, "errors": errors, **spreads}


@torch.inference_mode()
def width(budget: dict[str, Any], **settings: Any) -> Found:
    """The same loops with and without the width pathway, beside the dense FFN."""
    setup = set_up(**settings)
    timings = measure({n: setup.step(n) for n in ("dense", "packed", "no-width")}, **budget)
    rounds = zip(*(timings[n] for n in ("packed", "no-width", "dense")), strict=True)
    extra = spread([(with_ - without) / dense for with_, without, dense in rounds])
    return {"seconds": timings.spreads(), "extra": extra}


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

    def through(setups: list[Setup], executor: str, plan: ReusePlan) -> list[Tensor]:
        hidden_MD = first.hidden_MD
        for setup in setups:
            hidden_MD = replace(setup, hidden_MD=hidden_MD).run(executor, plan)
        return [hidden_MD]

    run: dict[str, Callable[[], object]] = {}
    errors: dict[str, float] = {}
    for name, shares in DECODED.items():
        if name == "mixed" and tokens == 1:
            continue
        plan = set_up(shares=shares, **settings).plan()
        ways = {name: executor, f"{against}, {name}": against}
        # In one layer: through dozens, rounding alone takes two ways apart.
        outputs = {n: through(setups[:1], way, plan) for n, way in ways.items()}
        errors |= check_equal(outputs, f"{against}, {name}", TOLERANCE[first.dtype])
        run[name] = captured(partial(through, setups, executor, plan))
        if device == "cpu":  # packed's steps depend on the tokens, which no CUDA graph may
            run[f"{against}, {name}"] = partial(through, setups, against, plan)
    run["dense"] = captured(partial(through, setups, "dense", first.plan()))
    pairs = [(n, "dense", 1.0) for n in run] + [("4 loops", "1 loop", 1.0)]
    timings = measure(run, wait=waits_for(device), calls=CALLS[device], **budget)
    spreads = {"seconds": timings.spreads(), "ratios": timings.ratios(pairs)}
    return {"layers": layers, "errors": errors, **spreads}
