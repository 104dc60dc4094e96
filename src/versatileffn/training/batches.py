"""Which windows are read in which step: a pure function of seed, step and rank."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
from torch.utils.data import Sampler

from versatileffn.data.order import epoch_order
from versatileffn.errors import ConfigError
from versatileffn.training.config import TrainConfig


@dataclass(frozen=True)
class BatchPlan:
    """How a run's windows are spread over steps, processes and micro-batches.

    Args:
        num_windows: windows of the training split.
        windows_per_step: windows of one optimizer step over all processes.
        micro_batch: windows that one process takes at once.
        world_size: processes.
        max_steps: optimizer steps of the run.
        seed: of the order.
        shuffled: the order is drawn; otherwise windows are read as they are stored.
    """

    num_windows: int
    windows_per_step: int
    micro_batch: int
    world_size: int
    max_steps: int
    seed: int
    shuffled: bool = True

    @property
    def accumulation(self) -> int:
        """Micro-batches that one process takes in one optimizer step."""
        return self.windows_per_step // (self.micro_batch * self.world_size)

    def epochs_at(self, step: int) -> float:
        """Passes over the training windows after `step` optimizer steps."""
        return step * self.windows_per_step / self.num_windows


def plan_batches(
    config: TrainConfig, num_windows: int, world_size: int, shuffled: bool = True
) -> BatchPlan:
    """Divide a run's windows.

    Raises:
        ConfigError: the batch doesn't divide by processes times micro-batch.
    """
    run = config.run
    per_step = config.windows_per_batch
    at_once = run.per_device_train_batch_size * world_size
    if per_step % at_once:
        raise ConfigError(
            f"run.tokens_per_batch={run.tokens_per_batch} is {per_step} windows of "
            f"{config.data.seq_len} tokens, not a multiple of {world_size} processes × "
            f"run.per_device_train_batch_size={run.per_device_train_batch_size}: change one of them"
        )
    max_steps = run.max_steps
    if max_steps is None:
        assert run.num_train_epochs is not None
        max_steps = max(1, int(run.num_train_epochs * num_windows / per_step))
    return BatchPlan(
        num_windows, per_step, run.per_device_train_batch_size, world_size, max_steps, run.seed,
        shuffled,
    )  # fmt: skip


class WindowBatches(Sampler[list[int]]):
    """The micro-batches of one process over the whole run, as lists of window numbers.

    Windows follow `epoch_order`, epoch after epoch, without dropping any; a step may span two
    epochs. A plan that isn't shuffled takes them as they are stored. The processes' micro-batches
    of a step are disjoint, and together the same whatever the number of processes: so from any step
    on, another number of them neither repeats nor skips a window.

    Args:
        plan: how windows are spread.
        rank: this process's number, 0-based.
    """

    def __init__(self, plan: BatchPlan, rank: int = 0) -> None:
        self.plan = plan
        self.rank = rank
        self._epoch = -1
        self._order: Callable[[np.ndarray], np.ndarray] = np.asarray

    def __len__(self) -> int:
        return self.plan.max_steps * self.plan.accumulation

    def __iter__(self) -> Iterator[list[int]]:
        plan = self.plan
        for step in range(plan.max_steps):
            windows = self.step_windows(step)
            for micro in range(plan.accumulation):
                start = (micro * plan.world_size + self.rank) * plan.micro_batch
                yield windows[start : start + plan.micro_batch]

    def step_windows(self, step: int) -> list[int]:
        """The window numbers of all processes in 0-based optimizer step `step`."""
        plan = self.plan
        first = step * plan.windows_per_step
        epochs, places = np.divmod(
            np.arange(first, first + plan.windows_per_step), plan.num_windows
        )
        if not plan.shuffled:
            return places.tolist()
        parts = [self._at(epoch, places[epochs == epoch]) for epoch in np.unique(epochs).tolist()]
        return np.concatenate(parts).tolist()

    def _at(self, epoch: int, places: np.ndarray) -> np.ndarray:
        if epoch != self._epoch:
            order = epoch_order(self.plan.num_windows, self.plan.seed, epoch)
            self._epoch, self._order = epoch, order
        return self._order(places)
