"""The report's pictures, drawn from result rows."""

from collections.abc import Sequence
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
        there is something to compare with the control; `loops-per-layer` where a model decides its
        loops per token; `expert-load` where one has experts.
    """
    rows = [row for row in rows if row.after is not None]
    if not rows:
        return {}
    first = [row for row in rows if row.seed == rows[0].seed]
    looping = [row for row in first if any(la.loop_share for la in row.layers)]
    routed = [row for row in first if any(la.expert_load for la in row.layers)]
    drawn = {"loss-curves": (loss_curves, rows)}
    if {row.arm for row in rows} > {BASE, CONTROL}:
        drawn["difference-curves"] = (difference_curves, rows)
    drawn["quality-against-flops"] = (quality, rows)
    if looping:
        drawn["loops-per-layer"] = (loops_per_layer, looping)
    if routed:
        drawn["expert-load"] = (expert_load, routed)
    folder.mkdir(parents=True, exist_ok=True)
    paths = {}
    for name, (draw, its_rows) in drawn.items():
        paths[name] = folder / f"{name}.svg"
        with inked():
            write_bytes(paths[name], svg(draw(its_rows)))
    return paths


def loss_curves(rows: Sequence[Row]) -> Figure:
    """Held-out loss against the tokens of continued training; seeds as thin lines."""
    drawn = figure(4.2)
    axes = drawn.subplots()
    ends = [row.after.nats_per_token for row in rows if row.after]
    top = [loss for row in rows if row.arm != BASE for _, loss in row.curve[1:2]]
    top += [row.after.nats_per_token for row in rows if row.arm == BASE and row.after]
    for arm, style in _styles(rows).items():
        mine = [row for row in rows if row.arm == arm]
        title = mine[0].title
        if arm == BASE:
            level = np.mean([row.after.nats_per_token for row in mine if row.after])
            axes.axhline(float(level), **style, label=title)
            continue
        tokens, losses = _curves(mine)
        if len(mine) > 1 and arm != CONTROL:
            axes.plot(tokens, losses.T, color=style["color"], linewidth=0.5, alpha=0.4)
        axes.plot(tokens, losses.mean(0), **style, label=title)
    axes.set_xlabel("tokens of continued training (thousands)")
    axes.set_ylabel("held-out loss (nats per token)")
    margin = 0.08 * (max(top) - min(ends))
    axes.set_ylim(min(ends) - margin, max(top) + margin)
    plain(axes)
    legend_below(drawn, axes)
    return drawn


def difference_curves(rows: Sequence[Row]) -> Figure:
    """Held-out loss minus the control's of the same seed, after equally many tokens."""
    drawn = figure(4.2)
    axes = drawn.subplots()
    control = {row.seed: dict(row.curve) for row in rows if row.arm == CONTROL}
    axes.axhline(0, **BAND, label=next(row.title for row in rows if row.arm == CONTROL))
    ends = [0.0]
    for arm, style in _styles(rows).items():
        mine = [row for row in rows if row.arm == arm and row.seed in control]
        if arm in (BASE, CONTROL) or not mine:
            continue
        tokens, losses = _curves(mine)
        shared = [[control[row.seed][count] for count, _ in row.curve] for row in mine]
        difference = losses - np.array(shared)
        if len(mine) > 1:
            axes.plot(tokens, difference.T, color=style["color"], linewidth=0.5, alpha=0.4)
        axes.plot(tokens, difference.mean(0), **style, label=mine[0].title)
        ends += difference[:, -2:].ravel().tolist()  # what conversion shocks may leave the picture
    margin = 0.1 * (max(ends) - min(ends))
    axes.set_ylim(min(ends) - margin, max(ends) + margin)
    axes.set_xlabel("tokens of continued training (thousands)")
    axes.set_ylabel("against the control (nats per token)")
    plain(axes)
    legend_below(drawn, axes)
    return drawn


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
        shares = [layer.loop_share or () for layer in row.layers]
        means = [layer.mean_loops or 0.0 for layer in row.layers]
        loop_shares(axes, shares, means, [str(n) for n in range(1, len(means) + 1)])
        axes.set_title(f"{row.title}: mean loops above each bar", fontsize=9, pad=14)
    all_axes[-1].set_xlabel("layer")
    drawn.supylabel("share of held-out tokens", fontsize=9)
    legend_below(drawn, all_axes[-1], columns=4)
    return drawn


def expert_load(rows: Sequence[Row]) -> Figure:
    """Share of the routed slots that each expert gets, by layer; even load is the same colour."""
    drawn = figure(1.25 * len(rows) + 0.8)
    all_axes = drawn.subplots(len(rows), 1, sharex=True, squeeze=False)[:, 0]
    loads = [np.array([la.expert_load for la in row.layers]) for row in rows]  # [layers, N]
    top = max(load.max() for load in loads)
    for axes, row, load in zip(all_axes, rows, loads, strict=True):
        image = axes.imshow(load, cmap="viridis", vmin=0, vmax=top, aspect="auto")
        axes.set_title(row.title, fontsize=9)
        axes.set_xticks(range(load.shape[1]), range(1, load.shape[1] + 1))
        axes.set_yticks(range(load.shape[0]), range(1, load.shape[0] + 1))
    all_axes[-1].set_xlabel("expert")
    drawn.supylabel("layer", fontsize=9)
    drawn.colorbar(image, ax=all_axes.tolist(), label="share of routed slots", shrink=0.9)
    return drawn


def _styles(rows: Sequence[Row]) -> dict[str, dict[str, Any]]:
    """By arm, in the order of the rows: the same in every picture."""
    colours = styles()
    own: dict[str, dict[str, Any]] = {
        BASE: {"color": INK, "linestyle": ":", "linewidth": 1.2, "alpha": 0.8},
        CONTROL: BAND,
    }
    return {arm: own.get(arm) or next(colours) for arm in dict.fromkeys(row.arm for row in rows)}


def _curves(rows: Sequence[Row]) -> tuple[np.ndarray, np.ndarray]:
    """Thousands of tokens (points,), and nats per token (seeds, points)."""
    tokens = np.array([count for count, _ in rows[0].curve]) / 1e3
    return tokens, np.array([[loss for _, loss in row.curve] for row in rows])
