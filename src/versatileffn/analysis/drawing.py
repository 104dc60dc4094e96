"""How our pictures look: one palette, and ink that follows the page into the dark.

A picture is drawn once, as narrow as a telephone shows it, and scales as SVG. Its lines and letters
have the page's colour (`currentColor`), which the file itself makes light on dark screens.
"""

import io
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import count
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

INK = "#010203"  # stands for the page's colour until the picture is written
PALETTE = "petroff10"
"""Of matplotlib; its first colours stay distinct for colour-blind readers."""
LINES = ("-", "--", "-.", ":")
MARKERS = "osD^vPX*"
WIDTH = 4.9
"""Inches."""
CROWD = 14
"""More bars than this have no room for numbers that lie flat."""
SHOWN = 64
"""Tokens of a sequence that a map has room for, from its start."""
_THEME = "<style>svg{color:#20262d}@media(prefers-color-scheme:dark){svg{color:#dfe3e8}}</style>"
_INKED: tuple[Any, ...] = (
    "text.color",
    "axes.edgecolor",
    "axes.labelcolor",
    "xtick.color",
    "ytick.color",
    "grid.color",
    "legend.labelcolor",
)


def styles() -> Iterator[dict[str, Any]]:
    """Colour, line and marker of one curve after the other; the latter two distinguish in print."""
    colours = matplotlib.color_sequences[PALETTE]
    for index in count():
        yield {
            "color": colours[index % len(colours)],
            "linestyle": LINES[index % len(LINES)],
            "marker": MARKERS[index % len(MARKERS)],
            "markersize": 4,
            "linewidth": 1.4,
        }


@contextmanager
def inked() -> Iterator[None]:
    """Within it, figures are drawn in `INK`, at a size that a telephone can show."""
    look: dict[Any, Any] = {**dict.fromkeys(_INKED, INK), "font.size": 9}
    with matplotlib.rc_context(look):
        yield


def figure(height: float) -> Figure:
    """An empty figure of `WIDTH` and so many inches height."""
    return Figure(figsize=(WIDTH, height), layout="constrained")


def plain(axes: Axes) -> None:
    """No frame, faint horizontal lines behind everything."""
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(axis="y", alpha=0.15, linewidth=0.6)
    axes.set_axisbelow(True)


def loop_shares(
    axes: Axes,
    shares: Sequence[Sequence[float]],
    means: Sequence[float],
    labels: Sequence[str],
    places: Sequence[float] | None = None,
) -> None:
    """Stacked bars: the share of tokens that take 1, 2, … L loops, and the mean above each.

    Args:
        axes: to draw on.
        shares: of each bar, its L shares, which sum to 1.
        means: mean loops of each bar.
        labels: what stands below each.
        places: where each stands on the axis; None puts them side by side.
    """
    index, bottom = list(places or range(len(shares))), np.zeros(len(shares))
    colours = matplotlib.colormaps["viridis"](np.linspace(0.95, 0.25, len(shares[0])))
    for loop, (share, colour) in enumerate(zip(np.array(shares).T, colours, strict=True), start=1):
        label = f"{loop} loop{'s' if loop > 1 else ''}"
        axes.bar(index, share, bottom=bottom, color=colour, label=label)
        bottom += share
    crowded = len(shares) > CROWD
    for x, mean in zip(index, means, strict=True):
        axes.text(x, 1.02, f"{mean:.2f}", ha="center", va="bottom", fontsize=6 if crowded else 8,
                  rotation=90 if crowded else 0)  # fmt: skip
    axes.set_xticks(index, labels, rotation=45 if crowded else 0)
    axes.set_ylim(0, 1)
    plain(axes)


def cosine_maps(panels: Mapping[str, np.ndarray], layers: Sequence[str]) -> bytes:
    """Cosines along one sequence as colours, a row for each layer and a panel for each title.

    Args:
        panels: [R, T] each, by title; the first `SHOWN` tokens are drawn.
        layers: what stands beside each row.
    """
    with inked():
        drawn = figure(1.6 + 0.34 * len(layers))
        all_axes = drawn.subplots(len(panels), 1, sharex=True)
        for axes, (title, values) in zip(all_axes, panels.items(), strict=True):
            image = axes.imshow(values[:, :SHOWN], cmap="coolwarm", vmin=-1, vmax=1,
                                aspect="auto", interpolation="nearest")  # fmt: skip
            axes.set_yticks(range(len(layers)), layers)
            axes.set_title(title, fontsize=9)
        all_axes[-1].set_xlabel("token of the sequence, 0-based")
        drawn.supylabel("layer", fontsize=9)
        drawn.colorbar(image, ax=list(all_axes), label="cosine", shrink=0.9)
        return svg(drawn)


def legend_below(drawn: Figure, axes: Axes, columns: int = 2) -> None:
    """Name the curves under the picture, so that they keep its whole width."""
    drawn.legend(*axes.get_legend_handles_labels(), loc="outside lower center", ncols=columns,
                 frameon=False, fontsize=8.5)  # fmt: skip


def svg(drawn: Figure) -> bytes:
    """The figure as a file that is the same whenever it is written, letters as outlines."""
    content = io.StringIO()
    with matplotlib.rc_context({"svg.hashsalt": "versatileffn"}):
        drawn.savefig(content, format="svg", transparent=True, metadata={"Date": None})
    head, tag, rest = content.getvalue().partition("<svg ")
    opening, end, body = rest.partition(">")
    return f"{head}{tag}{opening}{end}{_THEME}{body}".replace(INK, "currentColor").encode()
