"""What is set around the steps: the temperature τ, router biases, the last step's log line."""

from typing import Any

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from versatileffn.models.family import is_reuse
from versatileffn.training.batches import BatchPlan
from versatileffn.training.config import TauSection
from versatileffn.training.schedules import tau_at


def deciders(model: Any, name: str) -> list[Any]:
    """The controllers of a model that have an attribute of that name; of a dense one none."""
    layers = model.reuse_layers() if is_reuse(model.config) else []
    return [decider for layer in layers for decider in layer.deciders(name)]


class TauCallback(TrainerCallback):
    """Sets the temperature of every layer at the beginning of each step.

    Source: Algorithm 1; see `tau_at`.

    Args:
        schedule: how it falls.
        schedule_steps: over how many steps.
    """

    def __init__(self, schedule: TauSection, schedule_steps: int) -> None:
        self.schedule = schedule
        self.schedule_steps = schedule_steps

    def _set(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Set the temperature of the coming step; at the end, the one that is saved."""
        schedule = self.schedule
        kwargs["model"].set_tau(
            tau_at(
                state.global_step,
                self.schedule_steps,
                schedule.start,
                schedule.end,
                schedule.anneal_fraction,
            )
        )

    on_train_begin = on_step_begin = on_train_end = _set


class RouterBiasCallback(TrainerCallback):
    """Moves the biases of routers that have some, after each optimizer step."""

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Move them."""
        kwargs["model"].move_router_biases()


class LastStepCallback(TrainerCallback):
    """Logs the last step whatever the interval, and counts epochs in passes over the data."""

    def __init__(self, plan: BatchPlan) -> None:
        self.plan = plan

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Correct the epoch; ask for a log line at the end."""
        state.epoch = self.plan.epochs_at(state.global_step)
        if state.global_step >= state.max_steps:
            control.should_log = True
