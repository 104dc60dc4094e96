"""The dial: what a model may spend, of the running model and never saved.

`max_loops` caps what was decided. `mean_loops` moves the decisions themselves, by a penalty on each
loop; which one, says a curve that `versatileffn calibrate` measures and the config keeps.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn

from versatileffn.errors import ConfigError
from versatileffn.ffn.config import Versatile
from versatileffn.ffn.values import check_value
from versatileffn.layer import Reuse

Curve = Sequence[Mapping[str, float]]
"""Points with a `penalty` and the `mean_loops` that were measured with it, and what it cost."""


def set_compute_budget(
    model: nn.Module, max_loops: int | Tensor | None = None, mean_loops: float | None = None
) -> None:
    """Say what tokens may spend from now on; what isn't named has no limit.

    Args:
        model: a model, or any module with reused layers.
        max_loops: the most loops of every token, or of each sequence in the batch, [B]. A token
            that wants no more keeps its decision to the bit.
        mean_loops: how often a token should pass through an FFN on average, over text like that
            of the model's curve. Decisions move; `max_loops` caps what they became.

    Raises:
        ConfigError: a number is out of range, nothing is decided that could change, or the model
            has no curve.
    """
    layers = reused_layers(model)
    looping = [layer for layer in layers if layer.loops > 1]
    if max_loops is not None and not looping:
        raise ConfigError(
            f"max_loops={max_loops}: {_nothing(layers)} that could be capped, as every token "
            "passes through each FFN once: leave the budget out, or convert with vf.Versatile or "
            "vf.KLoop"
        )
    penalty = None
    if mean_loops is not None:
        check_priced(model)
        penalty = penalty_for(
            getattr(getattr(model, "config", None), "loop_curve", None), mean_loops
        )
    for layer in looping:
        layer.set_budget(max_loops)
    set_loop_penalty(model, penalty)


@contextmanager
def compute_budget(
    model: nn.Module, max_loops: int | Tensor | None = None, mean_loops: float | None = None
) -> Iterator[None]:
    """Another budget for a while; see `set_compute_budget`."""
    with unchanged_budget(model):
        set_compute_budget(model, max_loops, mean_loops)
        yield


@contextmanager
def unchanged_budget(model: nn.Module) -> Iterator[None]:
    """Afterwards the budget is what it was before."""
    layers = [module for module in model.modules() if isinstance(module, Reuse)]
    budgets = [(layer, layer.budget) for layer in layers]
    penalties = [
        (part, part.loop_penalty) for layer in layers for part in layer.deciders("loop_penalty")
    ]
    try:
        yield
    finally:
        for layer, budget in budgets:
            layer.budget = budget
        for part, penalty in penalties:
            part.loop_penalty = penalty


def each_cap(model: nn.Module) -> Iterator[int]:
    """Every cap in turn, 1 … L, in force while the caller's loop runs its body.

    Nothing if no token can loop. Afterwards the budget is what it was before.
    """
    most = max((part.loops for part in model.modules() if isinstance(part, Reuse)), default=1)
    with unchanged_budget(model):
        for cap in range(1, most + 1) if most > 1 else ():
            set_compute_budget(model, max_loops=cap)
            yield cap


def set_loop_penalty(model: nn.Module, penalty: float | None) -> None:
    """Let each loop after the first cost so much of its logit; None for nothing.

    Raises:
        ConfigError: nothing is decided that it could change.
    """
    if penalty is not None:
        check_priced(model)
    for layer in reused_layers(model):
        for part in layer.deciders("loop_penalty"):
            device = next(part.parameters()).device
            part.loop_penalty = None if penalty is None else torch.tensor(penalty, device=device)


def check_priced(model: nn.Module) -> None:
    """Refuse a model whose loops a penalty can't change, or not make cheaper.

    Raises:
        ConfigError: with the remedy.
    """
    layers = reused_layers(model)
    deciding = [
        layer for layer in layers if layer.loops > 1 and isinstance(layer.reuse_config, Versatile)
    ]
    if not deciding:
        raise ConfigError(
            f"{_nothing(layers)} token by token, so it has no mean to choose: give max_loops where "
            "it loops, or convert with vf.Versatile"
        )
    for layer in deciding:
        if layer.reuse_config.loop_mix == "soft":
            raise ConfigError(
                "loop_mix='soft' runs every loop for every token whatever their weights, so a "
                "smaller mean costs the same: give max_loops, or train with loop_mix='hard'"
            )
        if not layer.deciders("loop_penalty"):
            raise ConfigError(
                f"a {type(layer.controller).__name__} has no loop_penalty, by which the mean of "
                "its loops could be chosen: give it one, see ffn/budget.py's `charged`, or give "
                "max_loops"
            )


def penalty_for(curve: Curve | None, mean_loops: float) -> float:
    """The penalty with which a token takes so many loops on average, between measured points.

    Raises:
        ConfigError: there is no curve, or it doesn't go as far.
    """
    check_value("mean_loops", mean_loops, float)
    if not curve:
        raise ConfigError(
            f"mean_loops={mean_loops}: this checkpoint has no curve that says what a mean costs: "
            "make it with `versatileffn calibrate MODEL TEXT`, or give max_loops"
        )
    points = sorted((point["penalty"], point["mean_loops"]) for point in curve)
    for (penalty, mean), (next_penalty, next_mean) in pairwise(points):
        if next_mean <= mean_loops <= mean:
            share = (mean - mean_loops) / (mean - next_mean) if mean > next_mean else 0.0
            return penalty + share * (next_penalty - penalty)
    means = [mean for _, mean in points]
    raise ConfigError(
        f"mean_loops={mean_loops} lies outside of this checkpoint's curve: give {min(means):.3g} "
        f"to {max(means):.3g}, or max_loops"
    )


def reused_layers(model: nn.Module) -> list[Any]:
    """The layers whose FFN is reused.

    Raises:
        ConfigError: there is none.
    """
    layers = [module for module in model.modules() if isinstance(module, Reuse)]
    if not layers:
        raise ConfigError(
            f"a {type(model).__name__} has no reused FFN, so there are no loops to budget: convert "
            "it with versatileffn.upcycle"
        )
    return layers


def _nothing(layers: list[Any]) -> str:
    return f"a {layers[0].reuse_config.variant} model decides nothing"
