"""How a run departs from letting controllers choose among all loops: one after the other, or by
lot."""

from typing import Any

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from versatileffn.errors import ConfigError
from versatileffn.models.family import is_reuse
from versatileffn.training.callbacks import deciders
from versatileffn.training.optim_config import LoopCurriculumSection, OptimSection
from versatileffn.training.schedules import opened_at


def prepare_loops(model: Any, optim: OptimSection) -> None:
    """Check what a run asks of its controllers, and let depths be drawn if it asks for that.

    Raises:
        ConfigError: the model has no controller that chooses among several loops and can do so.
    """
    asked = {
        "loop_curriculum": (optim.loop_curriculum, "open_loops"),
        "sampled_loops": (optim.sampled_loops, "sampled_loops"),
    }
    for key, (section, attribute) in asked.items():
        if section is None:
            continue
        if not deciders(model, attribute) or model.config.ffn().loops == 1:
            raise ConfigError(
                f"optim.{key} has no effect on this model: it has no controller that chooses "
                f"among several loops and has {attribute}; leave it out"
            )
    if optim.consistency is not None and (
        not is_reuse(model.config) or model.config.ffn().loops == 1
    ):
        raise ConfigError(
            "optim.consistency has no effect on this model: it has one exit; leave it out"
        )
    if optim.sampled_loops is not None:
        if model.config.ffn().loop_mix == "soft":
            raise ConfigError(
                "optim.sampled_loops has no meaning for loop_mix='soft', where every token gets "
                "all loops: leave one of them out"
            )
        model.sample_loops(optim.sampled_loops.ratio)


class OpenLoopsCallback(TrainerCallback):
    """Opens one loop after the other, see `opened_at`.

    Held-out losses and tasks of the run see the loops that are open at their step: a loop that was
    never trained would say nothing about what is being trained.

    Args:
        curriculum: how.
        schedule_steps: steps of the schedule.
        max_loops: L.
    """

    def __init__(
        self, curriculum: LoopCurriculumSection, schedule_steps: int, max_loops: int
    ) -> None:
        self.curriculum = curriculum
        self.schedule_steps = schedule_steps
        self.max_loops = max_loops

    def at(self, step: int) -> tuple[int, float]:
        """Loops that are open in a step, and how far the newest of them is (0 to 1)."""
        return opened_at(step, self.schedule_steps, self.max_loops, self.curriculum.share)

    def _set(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Open the loops of the coming step."""
        open_loops, newest = self.at(state.global_step)
        kwargs["model"].set_open_loops(open_loops, newest if self.curriculum.ramp else 1.0)

    on_train_begin = on_step_begin = on_train_end = _set


def notes(model: Any, optim: OptimSection, schedule_steps: int, max_steps: int) -> list[str]:
    """What someone should know before such a run: in which state its model will be saved."""
    most, said = model.config.ffn().loops if deciders(model, "open_loops") else 1, []
    if optim.loop_curriculum is not None:
        last, _ = OpenLoopsCallback(optim.loop_curriculum, schedule_steps, most).at(max_steps - 1)
        if last < most:
            said.append(
                f"only {last} of {most} loops open before the run's last step, and the saved model "
                "has all of them: make optim.loop_curriculum.share smaller, or the run longer"
            )
    if optim.sampled_loops is not None:
        said.append(
            "depths are drawn by lot, so that the saved model's loop predictors are as they "
            "started; fit them afterwards, with all else in optim.frozen"
        )
    return said
