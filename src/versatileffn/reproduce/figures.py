"""The report's pictures, drawn from result rows."""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from versatileffn.analysis.drawing import (
    INK,
    figure,
    inked,
    legend_below,
    loop_shares,
    plain,
    styles,
    svg,
)
from versatileffn.reproduce.results import BASE, CONTROL, Row
from versatileffn.workspace.durable import write_bytes

BAND: dict[str, Any] = {"color": INK, "alpha": 0.25, "linewidth": 6, "solid_capstyle": "round"}
"""The control lies as a broad band under the lines that may coincide with it."""


def draw_all(rows: Sequence[Row], folder: Path) -> dict[str, Path]:
    """Draw every figure that the rows can fill.

    Args:
        rows: all models of all seeds.
        folder: where the SVG files go.

    Returns:
        Paths by figure name: `loss-curves`, `quality-against-flops`; `difference-curves` where
        there is something to compare with the control; the same with `scratch-` in front of models
        that were trained from scratch; `loops-per-layer` where a model decides its loops per token;
        `expert-load` where one has experts.
    """
    rows = [row for row in rows if row.after is not None]
    if not rows:
        return {}
    first = [row for row in rows if row.seed == rows[0].seed]
    looping = [row for row in first if any(la.loop_share for la in row.layers)]
    routed = [row for row in first if any(la.expert_load for la in row.layers)]
    drawn: dict[str, Any] = {}
    scratch = [row for row in rows if row.arm == BASE or row.control == BASE]
    continued = [row for row in rows if row.control == CONTROL]
    for prefix, those in (("", continued), ("scratch-", scratch)):
        drawn |= _curve_figures(prefix, those)
    drawn["quality-against-flops"] = (quality, rows)
    if looping:
        drawn["loops-per-layer"] = (loops_per_layer, looping)
    if routed:
        drawn["expert-load"] = (expert_load, routed)
    return write_figures(drawn, folder)


def write_figures(
    drawn: Mapping[str, tuple[Callable[[Any], Figure], Any]], folder: Path
) -> dict[str, Path]:
    """Draw each figure from its data into `folder/NAME.svg`."""
    folder.mkdir(parents=True, exist_ok=True)
    paths = {}
    for name, (draw, data) in drawn.items():
        paths[name] = folder / f"{name}.svg"
        with inked():
            write_bytes(paths[name], svg(draw(data)))
    return paths


def _curve_figures(prefix: str, rows: Sequence[Row]) -> dict[str, Any]:
    """The two pictures of models of one phase, where there is more than the control."""
    scratch = bool(prefix)
    control = BASE if scratch else CONTROL
    there = {row.arm for row in rows}
    if control not in there or (scratch and there == {control}):
        return {}
    drawn: dict[str, Any] = {f"{prefix}loss-curves": (partial(loss_curves, control=control), rows)}
    if there > {BASE, control}:
        differ = partial(difference_curves, control=control)
        drawn[f"{prefix}difference-curves"] = (differ, rows)
    return drawn


def loss_curves(rows: Sequence[Row], control: str = CONTROL) -> Figure:
    """Held-out loss against the tokens of training; seeds as thin lines."""
    drawn = figure(4.2)
    axes = drawn.subplots()
    level = None if control == BASE else BASE
    ends = [row.after.nats_per_token for row in rows if row.after]
    top = [loss for row in rows if row.arm != level for _, loss in row.curve[1:2]]
    top += [row.after.nats_per_token for row in rows if row.arm == level and row.after]
    for arm, style in _styles(rows, control).items():
        mine = [row for row in rows if row.arm == arm]
        title = mine[0].title
        if arm == level:
            height = np.mean([row.after.nats_per_token for row in mine if row.after])
            axes.axhline(float(height), **style, label=title)
            continue
        tokens, losses = _curves(mine)
        if len(mine) > 1 and arm != control:
            axes.plot(tokens, losses.T, color=style["color"], linewidth=0.5, alpha=0.4)
        axes.plot(tokens, losses.mean(0), **style, label=title)
    axes.set_xlabel(f"tokens of {_phase(control)} (thousands)")
    axes.set_ylabel("held-out loss (nats per token)")
    margin = 0.08 * (max(top) - min(ends))
    axes.set_ylim(min(ends) - margin, max(top) + margin)
    plain(axes)
    legend_below(drawn, axes)
    return drawn


def difference_curves(rows: Sequence[Row], control: str = CONTROL) -> Figure:
    """Held-out loss minus the control's of the same seed, after equally many tokens."""
    drawn = figure(4.2)
    axes = drawn.subplots()
    its = {row.seed: dict(row.curve) for row in rows if row.arm == control}
    axes.axhline(0, **BAND, label=next(row.title for row in rows if row.arm == control))
    ends = [0.0]
    for arm, style in _styles(rows, control).items():
        mine = [row for row in rows if row.arm == arm and row.seed in its]
        if arm in (BASE, control) or not mine:
            continue
        tokens, losses = _curves(mine)
        shared = [[its[row.seed].get(count, np.nan) for count, _ in row.curve] for row in mine]
        difference = losses - np.array(shared)  # NaN where the control wasn't measured
        if len(mine) > 1:
            axes.plot(tokens, difference.T, color=style["color"], linewidth=0.5, alpha=0.4)
        axes.plot(tokens, difference.mean(0), **style, label=mine[0].title)
        known = difference[:, np.isfinite(difference).all(0)]
        ends += known[:, -2:].ravel().tolist()  # what conversion shocks may leave the picture
    margin = 0.1 * (max(ends) - min(ends))
    axes.set_ylim(min(ends) - margin, max(ends) + margin)
    axes.set_xlabel(f"tokens of {_phase(control)} (thousands)")
    axes.set_ylabel("against the control (nats per token)")
    plain(axes)
    legend_below(drawn, axes)
    return drawn


def _phase(control: str) -> str:
    return "training from scratch" if control == BASE else "continued training"


def quality(rows: Sequence[Row]) -> Figure:
    """Held-out loss against executed FFN FLOPs per token; lower left is better."""
    drawn = figure(4.2)
    axes = drawn.subplots()
    for arm, style in _styles(rows).items():
        mine = [row for row in rows if row.arm == arm]
        flops = [row.flops_executed / 1e6 for row in mine if row.flops_executed]
        losses = [row.after.nats_per_token for row in mine if row.after]
        marker = style.get("marker", "x" if arm == BASE else "o")
        axes.scatter(flops, losses, color=style["color"], marker=marker, s=45, label=mine[0].title)
    axes.set_xlim(left=0)
    axes.set_xlabel("FFN FLOPs per token, executed at inference (millions)")
    axes.set_ylabel("held-out loss (nats per token)")
    plain(axes)
    legend_below(drawn, axes)
    return drawn


def loops_per_layer(rows: Sequence[Row]) -> Figure:
    """Per layer: the share of tokens for each loop count, stacked, and the mean."""
    drawn = figure(1.9 * len(rows) + 0.7)
    all_axes = drawn.subplots(len(rows), 1, sharex=True, squeeze=False)[:, 0]
    for axes, row in zip(all_axes, rows, strict=True):
        deciding = {n: layer for n, layer in enumerate(row.layers, start=1) if layer.loop_share}
        shares = [layer.loop_share or () for layer in deciding.values()]
        means = [layer.mean_loops or 0.0 for layer in deciding.values()]
        loop_shares(axes, shares, means, list(map(str, deciding)), list(deciding))
        axes.set_title(f"{row.title}: mean loops above each bar", fontsize=9, pad=14)
    all_axes[-1].set_xlabel("layer")
    drawn.supylabel("share of held-out tokens", fontsize=9)
    legend_below(drawn, all_axes[-1], columns=4)
    return drawn


def expert_load(rows: Sequence[Row]) -> Figure:
    """Share of the routed slots that each expert gets, by layer; even load is the same colour."""
    drawn = figure(1.25 * len(rows) + 0.8)
    all_axes = drawn.subplots(len(rows), 1, sharex=True, squeeze=False)[:, 0]
    routing = [
        {n: la.expert_load for n, la in enumerate(row.layers, start=1) if la.expert_load}
        for row in rows
    ]
    loads = [np.array(list(layers.values())) for layers in routing]  # [layers, N]
    top = max(load.max() for load in loads)
    for axes, row, layers, load in zip(all_axes, rows, routing, loads, strict=True):
        image = axes.imshow(load, cmap="viridis", vmin=0, vmax=top, aspect="auto")
        axes.set_title(row.title, fontsize=9)
        axes.set_xticks(range(load.shape[1]), range(1, load.shape[1] + 1))
        axes.set_yticks(range(load.shape[0]), list(layers))
    all_axes[-1].set_xlabel("expert")
    drawn.supylabel("layer", fontsize=9)
    drawn.colorbar(image, ax=all_axes.tolist(), label="share of routed slots", shrink=0.9)
    return drawn


def _styles(rows: Sequence[Row], control: str = CONTROL) -> dict[str, dict[str, Any]]:
    """By arm, in the order of the rows: the same in every picture."""
    colours = styles()
    own: dict[str, dict[str, Any]] = {
        BASE: {"color": INK, "linestyle": ":", "linewidth": 1.2, "alpha": 0.8},
        control: BAND,
    }
    return {arm: own.get(arm) or next(colours) for arm in dict.fromkeys(row.arm for row in rows)}


def _curves(rows: Sequence[Row]) -> tuple[np.ndarray, np.ndarray]:
    """Thousands of tokens (points,), and nats per token (seeds, points)."""
    tokens = np.array([count for count, _ in rows[0].curve]) / 1e3
    return tokens, np.array([[loss for _, loss in row.curve] for row in rows])
