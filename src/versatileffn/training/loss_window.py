"""The losses since the last log line: a checkpoint between two lines carries them on."""

import json
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

WINDOW = "loss_window.json"


class LossWindow:
    """Sums up a process's losses (nats per token) until they are logged.

    The Trainer does so as well, but forgets its sum when it stops between two log lines; a resumed
    run would then log another loss than one that went through.
    """

    def __init__(self) -> None:
        self._sum: Tensor | None = None
        self._since = 0
        self._dropped = 0
        self._before: Tensor | None = None

    def add(self, loss: Tensor) -> None:
        """Add the loss of one micro-batch, which is its part of the step's."""
        self._sum = loss if self._sum is None else self._sum + loss

    def step_loss(self, accelerator: Any) -> Tensor:
        """Mean loss over all processes of the step whose micro-batches were just added."""
        assert self._sum is not None
        own = self._sum if self._before is None else self._sum - self._before
        loss: Tensor = accelerator.gather(own).mean()
        return loss

    def end_step(self, taken: bool) -> None:
        """Keep the losses of the step that was just added, or forget them."""
        if not taken:
            self._sum = self._before
            self._dropped += 1
        self._before = self._sum

    def take(self, step: int, accelerator: Any) -> float | None:
        """Mean loss of the steps since the last call, over all processes; None: all were dropped.

        Args:
            step: optimizer steps that are finished.
            accelerator: joins the processes; all of them call this.
        """
        steps = step - self._since - self._dropped
        total, self._sum, self._before = self._sum, None, None
        self._since, self._dropped = step, 0
        if not steps:
            return None
        assert total is not None
        mean: float = accelerator.gather(total).mean().item() / steps
        return mean

    def state(self, accelerator: Any) -> dict[str, Any]:
        """What `save` writes; all processes call this."""
        empty = torch.zeros((), device=accelerator.device)
        sums = accelerator.gather(empty if self._sum is None else self._sum)
        return {
            "sums": None if self._sum is None else sums.view(-1).tolist(),
            "since": self._since,
            "dropped": self._dropped,
        }

    def load(self, path: Path, process: int, processes: int, device: torch.device) -> None:
        """Go on from what was written; where other processes wrote it, from their mean."""
        state = json.loads(path.read_bytes())
        sums = state["sums"]
        if sums is not None and len(sums) != processes:
            sums = [sum(sums) / len(sums)] * processes
        self._sum = None if sums is None else torch.tensor(sums[process], device=device)
        self._before = self._sum
        self._since, self._dropped = state["since"], state["dropped"]
