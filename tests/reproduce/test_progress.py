"""Progress lines: what a person reads while it runs."""

import io
import re
from pathlib import Path
from typing import Any

import pytest

from versatileffn.reproduce.numbers import clock
from versatileffn.reproduce.progress import Progress
from versatileffn.reproduce.stages import Stage, StageRunner, held


def stage(name: str, effort: float, needs: tuple[str, ...] = ()) -> Stage:
    def work(folder: Path) -> dict[str, Any]:
        return {}

    return Stage(name, f"step {name}", {}, work, needs, effort=effort)


def run(root: Path, progress: Progress, stages: list[Stage]) -> None:
    with held(root):
        StageRunner(root, progress).run(stages)


def test_lines_on_something_that_is_no_terminal(tmp_path: Path) -> None:
    stages = [stage("a", 1.0), stage("b", 3.0, ("a",))]
    stream = io.StringIO()
    run(tmp_path, Progress(stages, stream), stages)
    lines = stream.getvalue().splitlines()
    assert lines[0] == "[1/2] step a …"
    assert re.fullmatch(r"\[1/2\] step a: done in 0 s · \d+ s so far, about 0 s left", lines[1])
    assert lines[3] == "[2/2] step b: done in 0 s"

    again = io.StringIO()
    run(tmp_path, Progress(stages, again), stages)
    assert again.getvalue().count("finished before, skipped") == 2


def test_time_left_is_what_the_rest_costs_at_the_rate_so_far() -> None:
    stages = [stage("a", 2.0), stage("b", 6.0)]
    stream = io.StringIO()
    progress = Progress(stages, stream)
    progress(stages[0], 1, 2, "done", 30.0)
    assert "about 1 min 30 s left" in stream.getvalue()


def test_skipped_stages_say_nothing_about_the_rate() -> None:
    stages = [stage("a", 2.0), stage("b", 1.0), stage("c", 1.0)]
    stream = io.StringIO()
    progress = Progress(stages, stream)
    progress(stages[0], 1, 3, "skip", 1000.0)
    progress(stages[1], 2, 3, "done", 10.0)
    assert "about 10 s left" in stream.getvalue()


@pytest.mark.parametrize(
    ("seconds", "text"), [(7.6, "8 s"), (125, "2 min 05 s"), (3725, "1 h 02 min")]
)
def test_clock(seconds: float, text: str) -> None:
    assert clock(seconds) == text
