"""What a mean of loops costs: a penalty on each loop, against mean loops, loss and FLOPs.

Legend: N tokens of all layers, L max_loops, B windows, T tokens of each.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from versatileffn.analysis.drawing import INK, figure, inked, legend_below, plain, styles, svg
from versatileffn.analysis.reuse import measure_reuse
from versatileffn.budget import (
    check_priced,
    each_cap,
    set_loop_penalty,
    unchanged_budget,
)
from versatileffn.errors import ConfigError, DataError
from versatileffn.evaluation.likelihood import target_nats
from versatileffn.evaluation.observe import observe
from versatileffn.ffn.plan import ReusePlan
from versatileffn.models.mode import evaluating

LEAST_TOKENS = 1000
"""Of a text to calibrate on; fewer don't fix a mean to a hundredth of a loop."""
MARGIN = 0.05
"""Loops by which the outermost points stay away from 1 and L, where single tokens decide."""
ROWS = 2**16
"""Decisions that the penalties are chosen by, at most."""
HALVINGS = 40
CROWDED = 0.05
"""Of the picture's width; points nearer than that share one label."""


def calibrate(
    model: Any,
    batches: Sequence[Tensor],
    points: int = 9,
    progress: Callable[[int, int], None] = lambda done, of: None,
) -> list[dict[str, float]]:
    """Measure what penalties on the loops do to a model.

    Args:
        model: a causal language model of ours that decides its loops; its budget is as before
            afterwards.
        batches: token ids of held-out text without padding, each [B, T].
        points: how many penalties beside none.
        progress: called with how many were measured, and of how many.

    Returns:
        The curve: `penalty`, `mean_loops`, `nats_per_token` and `ffn_flops_per_token` of each
        point, the smallest penalty first.

    Raises:
        ConfigError: the model decides no loops, or soft ones.
        DataError: the text is too short, or the model can't read it.
    """
    check_priced(model)
    with unchanged_budget(model):
        model.set_compute_budget()
        check_text(batches, held_out_nats(model, batches))
        penalties = choose_penalties(model, batches, points)
        curve = []
        for done, penalty in enumerate(penalties):
            progress(done, len(penalties))
            set_loop_penalty(model, penalty)
            curve.append({"penalty": penalty, **_cost(model, batches)})
    return curve


def measure_caps(model: Any, batches: Sequence[Tensor]) -> list[dict[str, float]]:
    """The same numbers for `max_loops` of 1 to L, each with its `max_loops`.

    Args:
        model, batches: as of `calibrate`.
    """
    return [{"max_loops": cap, **_cost(model, batches)} for cap in each_cap(model)]


def _cost(model: Any, batches: Sequence[Tensor]) -> dict[str, float]:
    """Mean loops, loss and FLOPs under the budget that the model has."""
    reuse = measure_reuse(model, batches)
    assert reuse.mean_loops is not None
    return {
        "mean_loops": reuse.mean_loops,
        "nats_per_token": held_out_nats(model, batches),
        "ffn_flops_per_token": reuse.executed_flops,
    }


def held_out_nats(model: Any, batches: Sequence[Tensor]) -> float:
    """Mean cross entropy of each window's tokens but the first."""
    total, count = 0.0, 0
    with evaluating(model):
        for ids_BT in batches:
            ids = ids_BT.to(model.device)
            logits_BTV = model(input_ids=ids, use_cache=False).logits
            nats = target_nats(logits_BTV[:, :-1].flatten(0, 1), ids[:, 1:].flatten())
            total, count = total + float(nats.sum()), count + nats.numel()
    return total / count if count else math.nan


def check_text(batches: Sequence[Tensor], nats: float) -> None:
    """Refuse a text on which a mean of loops would mean nothing.

    Args:
        batches: its token ids.
        nats: the model's loss on it.

    Raises:
        DataError: it is too short, or the model predicts it no better than the frequencies of its
            own tokens would: wrong language, wrong tokenizer, or an untrained model.
    """
    tokens = sum(ids.numel() for ids in batches)
    if tokens < LEAST_TOKENS:
        raise DataError(
            f"the text has {tokens:,} tokens, and a curve needs {LEAST_TOKENS:,} or more: give a "
            "longer one"
        )
    counts = torch.cat([ids.flatten() for ids in batches]).bincount().double()
    shares = counts[counts > 0] / tokens
    entropy = float(-(shares * shares.log()).sum())
    if not nats < entropy:
        raise DataError(
            f"the model predicts this text no better ({nats:.2f} nats per token) than counting its "
            f"tokens would ({entropy:.2f}): give text in a language that it was trained on"
        )


def choose_penalties(model: Any, batches: Sequence[Tensor], points: int) -> list[float]:
    """Penalties that spread the mean evenly over 1 … L, and none, in order.

    They are found by what was decided without one; what a layer decides also moves with the layers
    before it, which is why the curve is measured.
    """
    logits_NL = _loop_logits(model, batches)
    loops = logits_NL.shape[-1]
    steps_L = torch.arange(loops)
    widest = float((logits_NL.amax(-1) - logits_NL.amin(-1)).max()) + 1
    found = {0.0}
    for target in torch.linspace(loops - MARGIN, 1 + MARGIN, points).tolist():
        low, high = -widest, widest
        for _ in range(HALVINGS):
            middle = (low + high) / 2
            mean = float(((logits_NL - middle * steps_L).argmax(-1) + 1.0).mean())
            low, high = (middle, high) if mean > target else (low, middle)
        found.add(high)
    return sorted(found)


def _loop_logits(model: Any, batches: Sequence[Tensor]) -> Tensor:
    """Loop logits of every token in every layer that decides, thinned out to `ROWS`, [N, L]."""
    rows: list[Tensor] = []
    for seen in observe(model, batches):
        for plan in seen.decisions:
            if isinstance(plan, ReusePlan) and plan.loop_logits is not None:
                rows.append(plan.loop_logits.flatten(0, -2).cpu())
    if not rows:
        raise ConfigError(
            "the controller's plans have no loop_logits, on which a penalty could work: let it "
            "return them, or give max_loops"
        )
    every_NL = torch.cat(rows)
    return every_NL[:: math.ceil(len(every_NL) / ROWS)]


def draw_curve(curve: Sequence[dict[str, float]], caps: Sequence[dict[str, float]] = ()) -> bytes:
    """Loss over executed FLOPs, as SVG: by penalty, each point labelled with its mean of loops; and
    by cap, labelled with it. Where points crowd, the first one's label stands for the others.
    """
    with inked():
        drawn = figure(3.2)
        axes, looks = drawn.subplots(), styles()
        for points, name, side in (
            (curve, "a mean of loops (mean_loops)", "left"),
            (caps, "at most so many (max_loops)", "right"),
        ):
            if not points:
                continue
            flops = [point["ffn_flops_per_token"] / 1e6 for point in points]
            nats = [point["nats_per_token"] for point in points]
            axes.plot(flops, nats, label=name, **next(looks))
            room, named = CROWDED * (max(flops) - min(flops)), list[float]()
            for point, x, y in sorted(zip(points, flops, nats, strict=True), key=_as_trained_first):
                if all(abs(x - other) > room for other in named):
                    named.append(x)
                    offset = (6, 0) if side == "left" else (-6, -3)
                    axes.annotate(_label(point), (x, y), offset, textcoords="offset points",
                                  ha=side, va="center", fontsize=7, color=INK)  # fmt: skip
        axes.margins(0.1)
        axes.set_xlabel("executed FFN MFLOPs per token")
        axes.set_ylabel("held-out nats per token")
        plain(axes)
        if caps:
            legend_below(drawn, axes)
        return svg(drawn)


def _as_trained_first(found: tuple[dict[str, float], float, float]) -> bool:
    return found[0].get("penalty") != 0


def _label(point: dict[str, float]) -> str:
    if "max_loops" in point:
        return f"≤ {point['max_loops']}"
    return f"{point['mean_loops']:.2f}" + ("" if point["penalty"] else " (as trained)")
