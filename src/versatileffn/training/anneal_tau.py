"""The temperature τ falls while any Trainer trains."""

from typing import Any

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from versatileffn.errors import ConfigError
from versatileffn.ffn.controller import START_TAU
from versatileffn.training.schedules import tau_at


class AnnealTau(TrainerCallback):
    """Sets the temperature of every layer at the beginning of each step.

        Trainer(model, args, train_dataset=…, callbacks=[AnnealTau()])

    It depends on nothing but the step, so a resumed run goes on where it was.

    Source: Algorithm 1; see `tau_at`.

    Args:
        start, end: τ at the first step, and once annealed, dimensionless, > 0.
        anneal_fraction: share of the schedule over which it falls, in (0, 1].
        steps: of the schedule; None takes those of the run.

    Raises:
        ConfigError: a value is out of range.
    """

    def __init__(
        self,
        start: float = START_TAU,
        end: float = 0.1,
        anneal_fraction: float = 0.96,
        steps: int | None = None,
    ) -> None:
        positive = min(start, end, 1 if steps is None else steps) > 0
        if not (positive and 0 < anneal_fraction <= 1):
            raise ConfigError(
                f"start={start!r}, end={end!r} and steps={steps!r} must be positive, and "
                f"anneal_fraction={anneal_fraction!r} a share above 0, at most 1"
            )
        self.ends, self.anneal_fraction, self.steps = (start, end), anneal_fraction, steps

    def _set(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Set the temperature of the coming step; at the end, the one that is saved."""
        steps = self.steps or state.max_steps
        tau = tau_at(state.global_step, steps, *self.ends, self.anneal_fraction)
        kwargs["model"].set_tau(tau)

    on_train_begin = on_step_begin = on_train_end = _set
