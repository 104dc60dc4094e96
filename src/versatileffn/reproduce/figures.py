"""The report's pictures, drawn from result rows; readable at the width of a README."""

from collections.abc import Sequence
from pathlib import Path

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from versatileffn.reproduce.results import BASE, CONTROL, Row

# Okabe and Ito's palette, which stays distinct for colour-blind readers; line styles and markers
# repeat the distinction for print.
STYLES = {
    BASE: ("#7f7f7f", ":", "s"),
    CONTROL: ("#000000", "-", "o"),
    "2-loop": ("#56B4E9", "--", "v"),
    "4-loop": ("#0072B2", "--", "^"),
    "moe": ("#E69F00", "-.", "D"),
    "versatile": ("#D55E00", "-", "P"),
    "versatile-learned": ("#009E73", "-", "X"),
}
SIZE = (8.0, 4.2)
DPI = 150


def draw_all(rows: Sequence[Row], folder: Path) -> dict[str, Path]:
    """Draw every figure that the rows can fill.

    Args:
        rows: all models of all seeds.
        folder: where the PNG files go.

    Returns:
        Paths by figure name: `loss-curves`, `quality-against-flops`, and, where a model decides
        its loops per token, `loops-per-layer`; where one has experts, `expert-load`.
    """
    figures = {"loss-curves": loss_curves(rows), "quality-against-flops": quality(rows)}
    looping = [row for row in _first_seed(rows) if any(la.loop_share for la in row.layers)]
    routed = [row for row in _first_seed(rows) if any(la.expert_load for la in row.layers)]
    if looping:
        figures["loops-per-layer"] = loops_per_layer(looping)
    if routed:
        figures["expert-load"] = expert_load(routed)
    folder.mkdir(parents=True, exist_ok=True)
    paths = {}
    for name, figure in figures.items():
        paths[name] = folder / f"{name}.png"
        figure.savefig(paths[name], dpi=DPI, metadata={"Software": None})
    return paths


def loss_curves(rows: Sequence[Row]) -> Figure:
    """Held-out loss against the tokens of continued training; seeds as thin lines."""
    figure = _figure()
    axes = figure.subplots()
    ends = [row.after.nats_per_token for row in rows]
    starts = [loss for row in rows if row.arm != BASE for _, loss in row.curve[1:2]]
    for arm in dict.fromkeys(row.arm for row in rows):
        mine = [row for row in rows if row.arm == arm]
        colour, line, marker = _style(arm)
        if arm == BASE:
            level = float(np.mean([row.after.nats_per_token for row in mine]))
            axes.axhline(level, color=colour, linestyle=line, label=mine[0].title)
            continue
        if len(mine) > 1:
            for row in mine:
                axes.plot(*_curve(row), color=colour, linestyle=line, linewidth=0.6, alpha=0.4)
        tokens, losses = zip(*(_curve(row) for row in mine), strict=True)
        axes.plot(
            np.mean(tokens, axis=0),
            np.mean(losses, axis=0),
            color=colour, linestyle=line, marker=marker, markersize=4, label=mine[0].title,
        )  # fmt: skip
    axes.set_xlabel("tokens of continued training (thousands)")
    axes.set_ylabel("held-out loss (nats per token)")
    top = max([*starts, *(row.after.nats_per_token for row in rows if row.arm == BASE)])
    margin = 0.08 * (top - min(ends))
    axes.set_ylim(min(ends) - margin, top + margin)
    _legend_outside(axes)
    return figure


def quality(rows: Sequence[Row]) -> Figure:
    """Held-out loss against executed FFN FLOPs per token; lower left is better."""
    figure = _figure()
    axes = figure.subplots()
    for arm in dict.fromkeys(row.arm for row in rows):
        mine = [row for row in rows if row.arm == arm]
        colour, _, marker = _style(arm)
        flops = [row.flops_executed / 1e6 for row in mine]
        losses = [row.after.nats_per_token for row in mine]
        axes.scatter(flops, losses, color=colour, marker=marker, s=70, label=mine[0].title)
    axes.set_xlim(left=0)
    axes.set_xlabel("FFN FLOPs per token, executed at inference (millions)")
    axes.set_ylabel("held-out loss (nats per token)")
    _legend_outside(axes)
    return figure


def loops_per_layer(rows: Sequence[Row]) -> Figure:
    """Per layer: the share of tokens for each loop count, stacked, and the mean."""
    figure = _figure()
    all_axes = figure.subplots(1, len(rows), sharey=True, squeeze=False)[0]
    for axes, row in zip(all_axes, rows, strict=True):
        shares = np.array([layer.loop_share for layer in row.layers])  # [layers, L]
        index, bottom = np.arange(1, len(shares) + 1), np.zeros(len(shares))
        colours = matplotlib.colormaps["Blues"](np.linspace(0.25, 1.0, shares.shape[1]))
        for loop, (share, colour) in enumerate(zip(shares.T, colours, strict=True), start=1):
            label = f"{loop} loop{'s' if loop > 1 else ''}"
            axes.bar(index, share, bottom=bottom, color=colour, label=label)
            bottom += share
        means = [layer.mean_loops for layer in row.layers]
        for x, mean in zip(index, means, strict=True):
            axes.text(x, 1.01, f"{mean:.2f}", ha="center", va="bottom", fontsize=9)
        axes.set_title(f"{row.title}\nmean loops above each bar", fontsize=10, pad=18)
        axes.set_xlabel("layer")
        axes.set_xticks(index)
        axes.set_ylim(0, 1)
        _plain(axes)
    all_axes[0].set_ylabel("share of held-out tokens")
    _legend_outside(all_axes[-1])
    return figure


def expert_load(rows: Sequence[Row]) -> Figure:
    """Share of the routed slots that each expert gets, by layer; even load is the same colour."""
    figure = _figure()
    all_axes = figure.subplots(1, len(rows), squeeze=False)[0]
    loads = [np.array([la.expert_load for la in row.layers]) for row in rows]  # [layers, N]
    top = max(load.max() for load in loads)
    for axes, row, load in zip(all_axes, rows, loads, strict=True):
        image = axes.imshow(load, cmap="cividis", vmin=0, vmax=top, aspect="auto")
        axes.set_title(row.title, fontsize=10)
        axes.set_xlabel("expert")
        axes.set_xticks(range(load.shape[1]), range(1, load.shape[1] + 1))
        axes.set_yticks(range(load.shape[0]), range(1, load.shape[0] + 1))
    all_axes[0].set_ylabel("layer")
    figure.colorbar(image, ax=all_axes.tolist(), label="share of routed slots", shrink=0.9)
    return figure


def _figure() -> Figure:
    return Figure(figsize=SIZE, layout="constrained", facecolor="white")


def _style(arm: str) -> tuple[str, str, str]:
    return STYLES.get(arm, ("#CC79A7", "-", "*"))


def _curve(row: Row) -> tuple[list[float], list[float]]:
    return [tokens / 1e3 for tokens, _ in row.curve], [loss for _, loss in row.curve]


def _first_seed(rows: Sequence[Row]) -> list[Row]:
    return [row for row in rows if row.seed == rows[0].seed]


def _legend_outside(axes: Axes) -> None:
    _plain(axes)
    axes.legend(loc="center left", bbox_to_anchor=(1.0, 0.5), frameon=False, fontsize=9)


def _plain(axes: Axes) -> None:
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(axis="y", color="#dddddd", linewidth=0.6)
    axes.set_axisbelow(True)
