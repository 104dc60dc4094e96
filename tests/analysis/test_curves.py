"""The curves of a run: every logged point is drawn where it belongs."""

import json
from pathlib import Path

import matplotlib.image
import pytest

from versatileffn.analysis.curves import TASK, draw_curves, loss_figure, read_curves, task_figure
from versatileffn.errors import DataError
from versatileffn.training.evaluation import PREFIX

LABELS = [f"task {n}" for n in range(8)]


def write_run(folder: Path, gain: float, tasks: list[str]) -> Path:
    """A run folder's log: a loss every 5 steps, an evaluation every 10."""
    folder.mkdir()
    (folder / "inputs.json").write_text(
        json.dumps({"config": {"run": {"tokens_per_batch": 400_000}}})
    )
    entries = []
    for step in (5, 10, 15, 20):
        entries.append({"step": step, "loss": 4 - 0.01 * gain * step, "layer_1/mean_loops": 2.0})
        if step % 10 == 0:
            entries.append({"step": step, "eval_loss": 4.1 - 0.01 * gain * step})
            scores = {f"eval_task_{t}": 0.3 + 0.01 * gain * step + 0.01 * i
                      for i, t in enumerate([*tasks, "mean"])}  # fmt: skip
            entries.append({"step": step, **scores})
    text = "".join(json.dumps(entry) + "\n" for entry in entries)
    (folder / "log.jsonl").write_text(text + '{"step": 25, "lo')  # a line that is being written
    return folder


@pytest.fixture
def runs(tmp_path: Path) -> dict[str, Path]:
    return {
        "dense": write_run(tmp_path / "one", 0.5, LABELS),
        "versatile": write_run(tmp_path / "two", 1.0, LABELS[:7]),
    }


def test_training_and_analysis_agree_on_names() -> None:
    assert TASK == PREFIX


def test_every_point_is_read(runs) -> None:
    curves = read_curves("dense", runs["dense"])
    steps, scored = (5, 10, 15, 20), [4e6, 8e6]
    assert curves.series["loss"] == ([s * 4e5 for s in steps], [4 - 0.005 * s for s in steps])
    assert curves.series["eval_loss"] == (scored, pytest.approx([4.05, 4.0]))
    assert curves.tasks == [*LABELS, "mean"]
    assert curves.series["eval_task_task 3"] == (scored, pytest.approx([0.38, 0.43]))
    assert len(curves.series) == 2 + 9


def test_each_task_has_its_panel_and_the_mean_is_last(runs) -> None:
    curves = [read_curves(name, run) for name, run in runs.items()]
    figure = task_figure(curves, {"task 0": "First"})
    panels = [axes for axes in figure.axes if axes.get_visible()]
    assert [axes.get_title() for axes in panels] == ["First", *LABELS[1:], "mean"]
    assert [len(axes.lines) for axes in panels] == [2] * 7 + [1, 2]  # one run lacks task 7
    tokens, shares = panels[3].lines[1].get_data()
    assert list(tokens) == [4e6, 8e6]
    assert list(shares) == pytest.approx([0.43, 0.53])
    figure.draw_without_rendering()
    assert "8 M" in [label.get_text() for label in panels[-1].get_xticklabels()]
    assert panels[3].yaxis.get_major_formatter()(0.43).startswith("43")
    assert [text.get_text() for text in figure.legends[0].texts] == ["dense", "versatile"]


def test_losses_are_drawn_over_tokens(runs) -> None:
    figure = loss_figure([read_curves(name, run) for name, run in runs.items()])
    drawn = [line for line in figure.axes[0].lines if not line.get_label().startswith("_")]
    assert [line.get_label() for line in drawn] == ["dense", "versatile"]
    assert list(drawn[1].get_xdata()) == [4e6, 8e6]
    assert list(drawn[1].get_ydata()) == pytest.approx([4.0, 3.9])


def test_pictures_are_written(runs, tmp_path) -> None:
    paths = draw_curves(runs, tmp_path / "new" / "figures")
    assert paths.keys() == {"loss", "tasks"}
    for path in paths.values():
        image = matplotlib.image.imread(path)
        assert image.shape[0] > 300
        assert image.std() > 0.01  # not a blank page
    assert (
        draw_curves(runs, tmp_path / "again")["tasks"].read_bytes() == paths["tasks"].read_bytes()
    )


def test_a_run_without_tasks_has_a_loss_curve_only(tmp_path) -> None:
    run = write_run(tmp_path / "run", 1.0, [])
    log = run / "log.jsonl"
    log.write_text("".join(line for line in log.open() if "task" not in line))
    assert draw_curves({"run": str(run)}, str(tmp_path / "out")).keys() == {"loss"}


def test_what_is_no_run_is_named(runs, tmp_path) -> None:
    with pytest.raises(DataError, match="can't be read as a training run"):
        draw_curves({"x": tmp_path / "nothing"}, tmp_path)
    log = runs["dense"] / "log.jsonl"
    log.write_text("not JSON\n" + log.read_text())
    with pytest.raises(DataError, match="one can't be read"):
        read_curves("x", runs["dense"])
    with pytest.raises(DataError, match="no run to draw"):
        draw_curves({}, tmp_path)
