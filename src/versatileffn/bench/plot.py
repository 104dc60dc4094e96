"""Time against executed loops: ours, the released schedule, and the ideal line."""

from pathlib import Path
from typing import Any

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from versatileffn.bench.results import Results

matplotlib.use("Agg", force=False)
SERIES = {
    "straightforward": ("#7f7f7f", "s", "released schedule"),
    "packed": ("#D55E00", "o", "ours"),
    "recompute": ("#009E73", "^", "ours, recomputing"),
}
"""Okabe and Ito's palette, which colour-blind readers tell apart; markers repeat it for print."""
IDEAL = {"inference": lambda mean: mean, "training": lambda mean: 4 + 2 * mean}


def draw(results: Results, path: Path) -> Path | None:
    """Draw one panel for each size and dtype that has at least two loop distributions.

    Args:
        results: what was measured.
        path: the PNG file.

    Returns:
        The path; None where there is nothing to draw.
    """
    panels: dict[tuple[str, str], list[dict[str, Any]]] = {}
    for kind in IDEAL:
        for name, (_, found) in results.found(kind).items():
            panels.setdefault((kind, name.rpartition("/")[0]), []).append(found)
    panels = {key: cases for key, cases in panels.items() if len(cases) > 1}
    if not panels:
        return None
    columns = min(4, len(panels))
    rows = -(-len(panels) // columns)
    figure = Figure(figsize=(3.6 * columns, 3.2 * rows), layout="constrained")
    axes = figure.subplots(rows, columns, squeeze=False).flat
    for ax in axes[len(panels) :]:
        ax.remove()
    for ax, ((kind, title), cases) in zip(axes, panels.items(), strict=False):
        _panel(ax, kind, title, sorted(cases, key=lambda found: found["mean_loops"]))
    figure.savefig(path, dpi=120, metadata={"Software": None})
    return path


def _panel(ax: Axes, kind: str, title: str, cases: list[dict[str, Any]]) -> None:
    """Units of one dense forward pass by mean loops, with quartiles."""
    for name, (color, marker, label) in SERIES.items():
        points = [
            (found["mean_loops"], found["ratios"][f"{name}/dense"])
            for found in cases
            if f"{name}/dense" in found["ratios"]
        ]
        if not points:
            continue
        x = [mean for mean, _ in points]
        # At inference these ratios are divided by E[ℓ̂]; the plot wants them as units.
        units = x if kind == "inference" else [1.0] * len(x)
        y, low, high = (
            [unit * ratio[key] for unit, (_, ratio) in zip(units, points, strict=True)]
            for key in ("median", "low", "high")
        )
        ax.plot(x, y, color=color, marker=marker, markersize=4, label=label)
        ax.fill_between(x, low, high, color=color, alpha=0.2, linewidth=0)
    means = [found["mean_loops"] for found in cases]
    ideal = [IDEAL[kind](mean) for mean in means]
    ax.plot(means, ideal, color="black", linestyle=":", label="executed FLOPs")
    ax.set_title(title, fontsize=9)
    ax.set_xlabel("mean loops a token, E[ℓ̂]", fontsize=8)
    ax.set_ylabel("dense forward passes", fontsize=8)
    ax.set_ylim(bottom=0)
    ax.tick_params(labelsize=8)
    ax.legend(fontsize=7, frameon=False)
