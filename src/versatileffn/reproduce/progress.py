"""Progress and time left in plain lines, which read the same on a terminal and in a log file."""

import sys
import time
from typing import TextIO

from versatileffn.reproduce.numbers import clock
from versatileffn.reproduce.stages import Stage


class Progress:
    """Prints one line when a stage starts and one when it ends, with the time left.

    The time left assumes that the remaining stages cost, per unit of their effort, what the stages
    of this run have cost so far.

    Args:
        stages: everything that will be run or skipped.
        stream: where the lines go; standard output by default.
    """

    def __init__(self, stages: list[Stage], stream: TextIO | None = None) -> None:
        self.stream = stream
        self.left = sum(stage.effort for stage in stages)
        self.worked_effort = 0.0
        self.worked_seconds = 0.0
        self.started = time.monotonic()

    def __call__(self, stage: Stage, position: int, total: int, event: str, seconds: float) -> None:
        """Take one event of a `StageRunner`."""
        where = f"[{position:>{len(str(total))}}/{total}]"
        if event == "skip":
            self.left -= stage.effort
            self._print(f"{where} {stage.title}: finished before, skipped")
        elif event == "done":
            self.left -= stage.effort
            self.worked_effort += stage.effort
            self.worked_seconds += seconds
            self._print(f"{where} {stage.title}: done in {clock(seconds)}{self._time_left()}")
        elif event == "damaged":
            self._print(f"{where} {stage.title}: its files have changed, set aside and done again")
        else:
            again = " (resuming an interrupted attempt)" if event == "resume" else ""
            self._print(f"{where} {stage.title} …{again}")

    def _time_left(self) -> str:
        if self.left <= 0 or not self.worked_effort:
            return ""
        rate = self.worked_seconds / self.worked_effort
        elapsed = time.monotonic() - self.started
        return f" · {clock(elapsed)} so far, about {clock(self.left * rate)} left"

    def _print(self, line: str) -> None:
        print(line, file=self.stream or sys.stdout, flush=True)
