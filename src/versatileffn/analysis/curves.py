"""Accuracy on each task, and the losses, along training: pictures from run folders."""

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import EngFormatter, PercentFormatter

from versatileffn.analysis.drawing import plain, styles
from versatileffn.errors import DataError

TASK = "eval_task_"
MEAN = "mean"
COLUMNS = 3
DPI = 150


class Curves(NamedTuple):
    """What a run's log says about its way.

    Args:
        name: how the legend calls it.
        series: by the log's key: tokens seen, and the values there. `loss` (nats per token, mean
            since the log line before), `eval_loss` (of held-out text), and of each task and their
            `mean` the share of right answers, 0 to 1.
    """

    name: str
    series: dict[str, tuple[list[float], list[float]]]

    @property
    def tasks(self) -> list[str]:
        """Names of the tasks that were scored, the mean among them."""
        return [key.removeprefix(TASK) for key in self.series if key.startswith(TASK)]


def read_curves(name: str, run: Path) -> Curves:
    """Read the log of a run folder, finished or not.

    Args:
        name: how the legend should call it.
        run: folder that `versatileffn train` writes.

    Raises:
        DataError: the folder holds no run, or its log is damaged.
    """
    curves = Curves(name, {})
    try:
        settings = json.loads((run / "inputs.json").read_bytes())["config"]["run"]
        lines = (run / "log.jsonl").read_text(encoding="utf-8").split("\n")
        for line in lines[:-1]:  # what follows the last newline is being written
            entry = json.loads(line)
            tokens = entry["step"] * settings["tokens_per_batch"]
            for key, value in entry.items():
                if key in ("loss", "eval_loss") or key.startswith(TASK):
                    points = curves.series.setdefault(key, ([], []))
                    points[0].append(tokens)
                    points[1].append(value)
    except (OSError, ValueError, KeyError, TypeError) as error:
        reason = getattr(error, "strerror", None) or repr(error)
        raise DataError(
            f"{run} can't be read as a training run ({reason}): give the folder that "
            "`versatileffn train` writes"
        ) from None
    return curves


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
    for style, curve in zip(styles(), curves, strict=False):
        thin = {"color": style["color"], "linewidth": 0.6, "alpha": 0.5}
        if "loss" in curve.series:
            axes.plot(*curve.series["loss"], **thin)
        if "eval_loss" in curve.series:
            axes.plot(*curve.series["eval_loss"], label=curve.name, **style)
    axes.set_xlabel("tokens")
    axes.set_ylabel("nats per token: held out\n(thin: training)")
    _over_tokens(axes)
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
    for axes, name in zip(panels, names, strict=False):
        for style, curve in zip(styles(), curves, strict=False):
            if name in curve.tasks:
                axes.plot(*curve.series[TASK + name], label=curve.name, **style)
        axes.set_title("mean" if name == MEAN else titles.get(name, name), fontsize=10)
        axes.yaxis.set_major_formatter(PercentFormatter(1.0))
        _over_tokens(axes)
    for axes in panels[len(names) :]:
        axes.set_visible(False)
    for axes in panels[::columns]:
        axes.set_ylabel("accuracy")
    figure.supxlabel("tokens", fontsize=10)
    handles = {
        label: handle
        for axes in panels[: len(names)]
        for handle, label in zip(*axes.get_legend_handles_labels(), strict=True)
    }
    figure.legend(handles.values(), handles.keys(), loc="outside upper center", ncols=4,
                  frameon=False, fontsize=9)  # fmt: skip
    return figure


def _over_tokens(axes: Axes) -> None:
    axes.xaxis.set_major_formatter(EngFormatter())
    plain(axes)
