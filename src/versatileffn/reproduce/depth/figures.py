"""The pictures of the depth experiment, drawn from its result rows."""

from collections.abc import Callable, Sequence
from pathlib import Path

import matplotlib
import numpy as np
from matplotlib.figure import Figure

from versatileffn.analysis.drawing import INK, figure, legend_below, plain, styles
from versatileffn.reproduce.depth.results import Row
from versatileffn.reproduce.figures import write_figures

Arms = dict[str, list[Row]]


def draw_all(rows: Sequence[Row], folder: Path) -> dict[str, Path]:
    """Draw every figure that the rows can fill.

    Args:
        rows: one for each arm and seed.
        folder: where the SVG files go.

    Returns:
        Paths by figure name: `exact-by-k`; where a model decides its loops `loops-by-k`,
        `loops-over-time` and `exact-under-caps`.
    """
    ended = [row for row in rows if "exact" in row]
    arms = {arm: [r for r in ended if r["arm"] == arm] for arm in dict.fromkeys(_names(ended))}
    deciding = {arm: mine for arm, mine in arms.items() if mine[0]["caps"]}
    drawn: dict[str, tuple[Callable[[Arms], Figure], Arms]] = {}
    if arms:
        drawn["exact-by-k"] = (exact_by_k, arms)
    if deciding:
        drawn["loops-by-k"] = (loops_by_k, deciding)
        drawn["loops-over-time"] = (loops_over_time, deciding)
        drawn["exact-under-caps"] = (exact_under_caps, deciding)
    return write_figures(drawn, folder)


def exact_by_k(arms: Arms) -> Figure:
    """Share of answers that are right in each bit, by k; means over seeds."""
    drawn = _lines(arms, lambda mine: np.mean([row["exact"] for row in mine], axis=0), 0.0)
    drawn.axes[0].set_ylabel("exact match on test states")
    return drawn


def loops_by_k(arms: Arms) -> Figure:
    """Loops at the token that answers, by k; means over seeds, and what is needed as a band."""
    drawn = _lines(arms, lambda mine: np.mean([row["loops"] for row in mine], axis=0), 1.0)
    axes = drawn.axes[0]
    needed = np.maximum(np.arange(len(next(iter(arms.values()))[0]["loops"])), 1)
    axes.plot(range(len(needed)), needed, color=INK, alpha=0.25, linewidth=6, zorder=0)
    axes.set_ylabel("loops of the reused FFN (band: as many as steps)")
    return drawn


def loops_over_time(arms: Arms) -> Figure:
    """Loops by k along training, on validation states; means over seeds, one panel an arm."""
    drawn = figure(1.35 * len(arms) + 0.8)
    panels = drawn.subplots(len(arms), 1, sharex=True, squeeze=False)[:, 0]
    for axes, mine in zip(panels, arms.values(), strict=True):
        steps = [entry["step"] for entry in mine[0]["course"]]
        loops = np.mean([[entry["loops"] for entry in row["course"]] for row in mine], axis=0)
        colours = matplotlib.colormaps["viridis"](np.linspace(0.95, 0.15, loops.shape[1]))
        for k, (line, colour) in enumerate(zip(loops.T, colours, strict=True)):
            axes.plot(steps, line, color=colour, linewidth=1.4, label=f"k = {k}")
        axes.set_title(mine[0]["title"], fontsize=9)
        axes.set_ylim(0.8, 4.2)
        plain(axes)
    panels[-1].set_xlabel("optimizer step")
    drawn.supylabel("mean loops", fontsize=9)
    legend_below(drawn, panels[-1], columns=5)
    return drawn


def exact_under_caps(arms: Arms) -> Figure:
    """Exact match, a mean over k, where nobody may loop more often than a cap; means over seeds."""

    def under(mine: list[Row]) -> np.ndarray:
        return np.mean([[np.mean(each) for each in row["caps"].values()] for row in mine], axis=0)

    drawn = _lines(arms, under, 0.0, first=1)
    drawn.axes[0].set_xlabel("most loops at inference")
    drawn.axes[0].set_ylabel("exact match, mean over k")
    return drawn


def _names(rows: Sequence[Row]) -> list[str]:
    return [row["arm"] for row in rows]


def _lines(
    arms: Arms, values: Callable[[list[Row]], np.ndarray], bottom: float, first: int = 0
) -> Figure:
    """One line for each arm over k = 0, 1, … (or another count from `first` on)."""
    drawn = figure(3.4 + 0.12 * len(arms))
    axes = drawn.subplots()
    for mine, style in zip(arms.values(), styles(), strict=False):
        line = values(mine)
        axes.plot(range(first, first + len(line)), line, **style, label=mine[0]["title"])
    axes.set_xticks(range(first, first + len(line)))
    axes.set_ylim(bottom=bottom - 0.03)
    axes.set_xlabel("k, steps that are asked for")
    plain(axes)
    legend_below(drawn, axes, columns=1)
    return drawn
