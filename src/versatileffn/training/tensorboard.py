"""What tensorboard is told: each step once, however often the run was resumed."""

from pathlib import Path
from typing import Any

from transformers import TrainerControl, TrainerState, TrainingArguments
from transformers.integrations import TensorBoardCallback


class _ResumedCallback(TensorBoardCallback):
    """Transformers' callback, whose texts about the run are written at its start only."""

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Write the run's settings, unless it is resumed."""
        if state.global_step == 0:
            super().on_train_begin(args, state, control, **kwargs)


def tensorboard_callback(folder: Path, resumed_step: int) -> TensorBoardCallback:
    """Reports to tensorboard's files in `folder`.

    Args:
        folder: of the event files.
        resumed_step: what earlier sessions wrote of the steps after it is no longer shown.
    """
    from torch.utils.tensorboard import SummaryWriter

    first = resumed_step + 1 if resumed_step else 0
    return _ResumedCallback(SummaryWriter(str(folder), purge_step=first))
