"""What is set around the steps: router biases, the last step's log line. For τ: `anneal_tau.py`."""

from typing import Any

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from versatileffn.models.family import is_reuse
from versatileffn.training.batches import BatchPlan


def deciders(model: Any, name: str) -> list[Any]:
    """The controllers of a model that have an attribute of that name; of a dense one none."""
    layers = model.reuse_layers() if is_reuse(model.config) else []
    return [decider for layer in layers for decider in layer.deciders(name)]


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
