"""Transformers' Trainer with checkpoints that appear whole, and go on to what was interrupted."""

import zlib
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import Trainer
from transformers.trainer import OPTIMIZER_NAME, SCHEDULER_NAME

from versatileffn.training.bad_steps import BadSteps
from versatileffn.training.checkpoint_store import CheckpointStore
from versatileffn.training.divergence import check_weights
from versatileffn.training.loss_window import WINDOW, LossWindow
from versatileffn.training.restoring import load_weights, reading
from versatileffn.workspace.durable import PARTIAL


class CheckpointTrainer(Trainer):
    """Checkpoints are written beside, sealed and synced, and renamed when every process is done.

    Args:
        args: Transformers' own arguments, as `kwargs`.

    Attributes:
        store: where checkpoints go; set before the first one.
        window: losses since the last log line, which a checkpoint carries on.
        bad_steps: judges steps, and is carried on as well; None: every step is taken.
    """

    store: CheckpointStore | None = None
    bad_steps: BadSteps | None = None
    _writing_checkpoint = False

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        self.window = LossWindow()
        super().__init__(*args, **kwargs)

    @property
    def unwrapped(self) -> Any:
        """The model itself, without what shares it among processes."""
        return self.accelerator.unwrap_model(self.model)

    def training_step(
        self,
        model: nn.Module,
        inputs: dict[str, Tensor | Any],
        num_items_in_batch: Tensor | int | None = None,
    ) -> Tensor:
        """One micro-batch, forward and backward; its part of the step's loss."""
        loss = super().training_step(model, inputs, num_items_in_batch)
        self.window.add(loss)
        return loss

    # Saving.

    def _get_output_dir(self, trial: Any) -> str:
        folder = super()._get_output_dir(trial)
        return str(Path(folder) / PARTIAL) if self._writing_checkpoint else folder

    def _save_checkpoint(self, model: nn.Module, trial: Any) -> None:
        assert self.store is not None
        check_weights(self.unwrapped, self.state.global_step)
        window = self.window.state(self.accelerator)
        if self.bad_steps is not None:
            window |= self.bad_steps.state()
        self.store.make_room()
        self._writing_checkpoint = True
        try:
            with self.store.writing():
                super()._save_checkpoint(model, trial)
        finally:
            self._writing_checkpoint = False
        self.accelerator.wait_for_everyone()
        if self.args.should_save:
            self.store.publish(self.state.global_step, window)
        self.accelerator.wait_for_everyone()

    # Loading.

    def _load_from_checkpoint(
        self, resume_from_checkpoint: str, model: nn.Module | None = None
    ) -> None:
        if self.is_fsdp_enabled or self.is_deepspeed_enabled:
            super()._load_from_checkpoint(resume_from_checkpoint, model)
            return
        folder = Path(resume_from_checkpoint)
        load_weights(self.unwrapped if model is None else model, folder)
        self._load_window(folder)

    def _load_window(self, folder: Path) -> None:
        args = self.args
        with reading(folder / WINDOW):
            self.window.load(folder / WINDOW, args.process_index, args.world_size, args.device)
            if self.bad_steps is not None:
                self.bad_steps.load(folder / WINDOW)

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        if checkpoint is None or self.is_fsdp_enabled or self.is_deepspeed_enabled:
            super()._load_optimizer_and_scheduler(checkpoint)
            return
        # Not the Trainer's way: with several CPU processes it maps to a device "cpu:0", which
        # torch.load doesn't know.
        parts: dict[str, Any] = {OPTIMIZER_NAME: self.optimizer, SCHEDULER_NAME: self.lr_scheduler}
        for name, part in parts.items():
            with reading(Path(checkpoint) / name):
                part.load_state_dict(
                    torch.load(Path(checkpoint) / name, map_location="cpu", weights_only=True)
                )

    def _load_rng_state(self, checkpoint: str | None) -> None:
        folder = Path(checkpoint or "")
        if len(list(folder.glob("rng_state*.pth"))) != self.args.world_size:
            # Of other processes. These draw what none of those has drawn.
            step, process = self.state.global_step, self.args.process_index
            torch.manual_seed(zlib.crc32(f"{self.args.seed} {step} {process}".encode()))
            return
        with reading(folder / "the random state"):
            super()._load_rng_state(checkpoint)
