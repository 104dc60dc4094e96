"""Steps that would do harm: numbers that aren't finite, a loss that jumps. They are left out, or
end the run before they touch the weights."""

import json
import math
from collections import deque
from pathlib import Path
from statistics import median
from typing import Any

from versatileffn.errors import DivergedError
from versatileffn.training.batches import BatchPlan, WindowBatches
from versatileffn.training.log_file import append_entry
from versatileffn.training.optim_config import BadStepsSection

LEFT_OUT = "left_out"
"""Key of an entry of the log, with the reason; `windows` beside it says which batch it was."""
STATE = "bad_steps"


class BadSteps:
    """Judges each optimizer step by its loss and gradient norm, before the optimizer moves.

    A spike is a loss above median + spike × MAD of the last `window` losses that were taken; before
    there are so many, nothing is. All processes are given the same numbers, so they decide alike.

    Args:
        rule: see `BadStepsSection`.
        plan: which windows a step reads.
        log: the run's.
        speaks: whether this process writes and prints.
    """

    def __init__(self, rule: BadStepsSection, plan: BatchPlan, log: Path, speaks: bool) -> None:
        self.rule, self.log, self.speaks = rule, log, speaks
        self._batches = WindowBatches(plan)
        self._losses: deque[float] = deque(maxlen=rule.window)
        self._in_a_row = 0

    def take(self, step: int, loss: float, norm: float) -> bool:
        """Whether the optimizer may make a step.

        Args:
            step: 1-based number of it.
            loss: its own (nats per token), over all processes.
            norm: of its gradient, before clipping.

        Raises:
            DivergedError: it may not, and the rule is to stop; or too many in a row may not.
        """
        reason = self._fault(loss, norm)
        if reason is None:
            self._losses.append(loss)
            self._in_a_row = 0
            return True
        windows = self._batches.step_windows(step - 1)
        batch = f"batch of windows {', '.join(map(str, windows[:8]))}"
        batch += f" and {len(windows) - 8} more" if len(windows) > 8 else ""
        if self.rule.action == "stop":
            raise DivergedError(step - 1, f"{reason} in step {step}, {batch}")
        self._in_a_row += 1
        if self._in_a_row > self.rule.most:
            raise DivergedError(
                step - 1,
                f"{reason} in step {step}, {batch}, after {self.rule.most} steps in a row that "
                "were left out (optim.bad_steps.most)",
            )
        if self.speaks:
            shown = {"step_loss": loss, "step_grad_norm": norm}
            append_entry(self.log, {"step": step, LEFT_OUT: reason, **shown, "windows": windows})
            print(f"step {step} is left out: {reason}; {batch}", flush=True)
        return False

    def _fault(self, loss: float, norm: float) -> str | None:
        if not math.isfinite(loss):
            return f"the loss is {loss}"
        if not math.isfinite(norm):
            return f"the gradient's norm is {norm}"
        if self.rule.spike is None or len(self._losses) < self.rule.window:
            return None
        middle = median(self._losses)
        most = middle + self.rule.spike * median(abs(each - middle) for each in self._losses)
        return f"the loss is {loss:.4f}, more than {most:.4f}" if loss > most else None

    def state(self) -> dict[str, Any]:
        """What a checkpoint keeps."""
        return {STATE: {"losses": list(self._losses), "in_a_row": self._in_a_row}}

    def load(self, path: Path) -> None:
        """Go on from what a checkpoint keeps, in the file `path`."""
        state = json.loads(path.read_bytes())[STATE]
        self._losses.extend(state["losses"])
        self._in_a_row = state["in_a_row"]


def left_out(log: Path) -> list[int]:
    """The steps of a run that were left out."""
    lines = log.read_text().splitlines() if log.is_file() else []
    return [entry["step"] for line in lines if LEFT_OUT in (entry := json.loads(line))]
