"""Tasks are scored, and the held-out loss is taken, every few steps of a training run."""

import random
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from versatileffn.models.mode import evaluating

TaskEvaluator = Callable[[Any, Any], Mapping[str, float]]
"""Scores by name, of a model with its tokenizer; `evaluation.task_scores.TaskScores` is one."""
PREFIX = "eval_task_"


@contextmanager
def preserved_randomness() -> Iterator[None]:
    """Whatever the block draws, the random states of Python, numpy and torch are as before it."""
    python, numpy = random.getstate(), np.random.get_state()
    devices = range(torch.cuda.device_count()) if torch.cuda.is_initialized() else []
    try:
        with torch.random.fork_rng(devices=devices):
            yield
    finally:
        random.setstate(python)
        np.random.set_state(numpy)


def _precision(args: TrainingArguments) -> torch.autocast:
    """Autocast as in the run's forward passes, so that tasks and held-out loss are of one model."""
    dtype = torch.float16 if args.fp16 else torch.bfloat16
    return torch.autocast(args.device.type, dtype, enabled=args.fp16 or args.bf16)


class TaskCallback(TrainerCallback):
    """Logs task scores beside a held-out loss of the same step; training goes on unchanged.

    Works with any Trainer of Transformers that has an `eval_dataset` and a `processing_class`:
    `trainer.add_callback(TaskCallback(scores, 500, trainer.log))`. The log gets one entry with
    `eval_task_<name>` for each score. Every process calls `evaluate`, which may divide the items
    among them, in the precision of the run's forward passes.

    Source: Figures 7–9 (accuracy on the tasks along training).

    Args:
        evaluate: scores the model, see `TaskEvaluator`.
        every_steps: optimizer steps between evaluations; the last step is always one.
        log: receives the entry, `trainer.log`.
    """

    def __init__(
        self, evaluate: TaskEvaluator, every_steps: int, log: Callable[[dict[str, float]], None]
    ) -> None:
        self.evaluate = evaluate
        self.every_steps = every_steps
        self.log = log
        self._done: int | None = None

    def _due(self, state: TrainerState) -> bool:
        step = state.global_step
        return step > 0 and (step % self.every_steps == 0 or step >= state.max_steps)

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Ask for the held-out loss of this step; the tasks follow it."""
        if self._due(state):
            control.should_evaluate = True

    def on_evaluate(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Score the tasks, once for each step."""
        if not self._due(state) or self._done == state.global_step:
            return
        model = kwargs["model"]
        with evaluating(model), preserved_randomness(), _precision(args):
            scores = self.evaluate(model, kwargs["processing_class"])
        self._done = state.global_step
        self.log({f"{PREFIX}{name}": value for name, value in scores.items()})
