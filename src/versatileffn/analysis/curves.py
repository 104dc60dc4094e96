"""Accuracy on each task, and the losses, along training: pictures from run folders."""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from versatileffn.analysis.drawing import plain, styles
from versatileffn.errors import DataError

TASK = "eval_task_"
MEAN = "mean"
COLUMNS = 3
DPI = 150

Points = list[tuple[float, float]]
"""(tokens seen, value), along training."""


@dataclass
class Curves:
    """What a run's log says about its way.

    Args:
        name: how the legend calls it.
        tasks: by task (and `mean`): share of right answers, 0 to 1.
        train_loss: nats per token, mean since the log line before.
        held_out: nats per token of held-out text.
    """

    name: str
    tasks: dict[str, Points] = field(default_factory=dict)
    train_loss: Points = field(default_factory=list)
    held_out: Points = field(default_factory=list)


def read_curves(name: str, run: Path) -> Curves:
    """Read the log of a run folder, finished or not.

    Args:
        name: how the legend should call it.
        run: folder that `versatileffn train` writes.

    Raises:
        DataError: the folder holds no run, or its log is damaged.
    """
    curves = Curves(name)
    try:
        per_step = json.loads((run / "inputs.json").read_bytes())["config"]["run"][
            "tokens_per_batch"
        ]
        lines = (run / "log.jsonl").read_text(encoding="utf-8").split("\n")
        for line in lines[:-1]:  # what follows the last newline is being written
            entry = json.loads(line)
            _add(curves, entry["step"] * per_step, entry)
    except (OSError, ValueError, KeyError, TypeError) as error:
        reason = getattr(error, "strerror", None) or repr(error)
        raise DataError(
            f"{run} can't be read as a training run ({reason}): give the folder that "
            "`versatileffn train` writes"
        ) from None
    return curves


def _add(curves: Curves, tokens: float, entry: dict[str, Any]) -> None:
    for key, value in entry.items():
        if key.startswith(TASK):
            curves.tasks.setdefault(key.removeprefix(TASK), []).append((tokens, value))
    if "loss" in entry:
        curves.train_loss.append((tokens, entry["loss"]))
    if "eval_loss" in entry:
        curves.held_out.append((tokens, entry["eval_loss"]))


def draw_curves(
    runs: Mapping[str, str | Path], folder: str | Path, titles: Mapping[str, str] | None = None
) -> dict[str, Path]:
    """Draw one or more runs over the tokens that they have seen.

    Source: Figures 7–9 (accuracy on each task along training) and 3 (loss).

    Args:
        runs: run folders by the names they get in the legend.
        folder: where the PNG files go.
        titles: how to call tasks; their labels otherwise.

    Returns:
        Paths by figure name: `loss`, and `tasks` where a run scored any.

    Raises:
        DataError: a folder holds no run, or there is none.
    """
    if not runs:
        raise DataError("no run to draw: give at least one run folder")
    curves = [read_curves(name, Path(run)) for name, run in runs.items()]
    figures = {"loss": loss_figure(curves)}
    if any(curve.tasks for curve in curves):
        figures["tasks"] = task_figure(curves, titles or {})
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    paths = {name: folder / f"{name}.png" for name in figures}
    for name, figure in figures.items():
        figure.savefig(paths[name], dpi=DPI, metadata={"Software": None})
    return paths


def loss_figure(curves: Sequence[Curves]) -> Figure:
    """Held-out loss, and the training loss thinly behind it."""
    figure = Figure(figsize=(8.0, 4.2), layout="constrained", facecolor="white")
    axes = figure.subplots()
    scale, unit = _unit(curves)
    for style, curve in zip(styles(), curves, strict=False):
        if curve.train_loss:
            axes.plot(*_scaled(curve.train_loss, scale), color=style["color"], linewidth=0.6,
                      alpha=0.5)  # fmt: skip
        if curve.held_out:
            axes.plot(*_scaled(curve.held_out, scale), label=curve.name, **style)
    axes.set_xlabel(f"tokens ({unit})")
    axes.set_ylabel("nats per token: held out\n(thin: training)")
    plain(axes)
    axes.legend(loc="upper right", frameon=False, fontsize=9)
    return figure


def task_figure(curves: Sequence[Curves], titles: Mapping[str, str]) -> Figure:
    """A panel for each task, the mean last."""
    names = list(dict.fromkeys(name for curve in curves for name in curve.tasks if name != MEAN))
    if len(names) != 1:  # of one task the mean is the same picture again
        names.append(MEAN)
    columns = min(COLUMNS, len(names))
    rows = math.ceil(len(names) / columns)
    size = (3.2 * columns, 2.6 * rows + 0.4)
    figure = Figure(figsize=size, layout="constrained", facecolor="white")
    panels = figure.subplots(rows, columns, squeeze=False).flatten()
    scale, unit = _unit(curves)
    for axes, name in zip(panels, names, strict=False):
        for style, curve in zip(styles(), curves, strict=False):
            if name in curve.tasks:
                tokens, shares = _scaled(curve.tasks[name], scale)
                percent = [100 * share for share in shares]
                axes.plot(tokens, percent, label=curve.name, **style)
        axes.set_title("mean" if name == MEAN else titles.get(name, name), fontsize=10)
        plain(axes)
    for axes in panels[len(names) :]:
        axes.set_visible(False)
    for axes in panels[::columns]:
        axes.set_ylabel("accuracy (%)")
    figure.supxlabel(f"tokens ({unit})", fontsize=10)
    handles = {
        label: handle
        for axes in panels[: len(names)]
        for handle, label in zip(*axes.get_legend_handles_labels(), strict=True)
    }
    figure.legend(handles.values(), handles.keys(), loc="outside upper center", ncols=4,
                  frameon=False, fontsize=9)  # fmt: skip
    return figure


def _unit(curves: Sequence[Curves]) -> tuple[float, str]:
    """What to divide tokens by, and what that is called."""
    series = [p for c in curves for p in (c.train_loss, c.held_out, *c.tasks.values())]
    most = max((tokens for points in series for tokens, _ in points), default=0.0)
    for scale, unit in ((1e9, "billions"), (1e6, "millions")):
        if most >= scale:
            return scale, unit
    return 1e3, "thousands"


def _scaled(points: Points, scale: float) -> tuple[list[float], list[float]]:
    return [tokens / scale for tokens, _ in points], [value for _, value in points]
