"""A run whose weights are divided among its processes, and whose checkpoints are in shares."""

from functools import cached_property
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn
from transformers.trainer import SCHEDULER_NAME

from versatileffn.evaluation.processes import is_divided
from versatileffn.models.shares import WEIGHTS, load_shares, save_shares, weights_of
from versatileffn.training.restoring import reading
from versatileffn.training.sharding import gathered
from versatileffn.training.trainer import ReuseTrainer

OPTIMIZER = "optimizer"
"""Folder in a checkpoint in shares, beside that of the weights."""


class SharesTrainer(ReuseTrainer):
    """`ReuseTrainer` for a model that `shard` has divided; of one process it holds the whole model.

    accelerate is told that the model needs no more preparation, and adds neither DDP nor autocast.
    """

    @cached_property
    def divided(self) -> bool:
        """Whether there are other processes to gather weights from; it stays so."""
        return is_divided(self.unwrapped)

    def _prepare_for_training(self, *args: Any, **kwargs: Any) -> Any:
        self.unwrapped._is_accelerate_prepared = self.divided
        return super()._prepare_for_training(*args, **kwargs)

    def compute_loss_context_manager(self) -> Any:
        """Autocast, where accelerate puts none around the model."""
        if not self.divided:
            return super().compute_loss_context_manager()
        return torch.autocast(self.args.device.type, torch.bfloat16, enabled=self.args.bf16)

    # Saving.

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        """Shares into a checkpoint; anywhere else the whole model, which one process gathers."""
        if not self._writing_checkpoint and not self.divided:
            super().save_model(output_dir, _internal_call)
            return
        assert output_dir is not None
        weights = weights_of(self.unwrapped)
        if not self._writing_checkpoint:
            weights = gathered(weights, self.args.should_save)
            if self.args.should_save:
                self._save(output_dir, state_dict=weights)
            return
        save_shares(weights, Path(output_dir) / WEIGHTS)
        if self.args.should_save:
            self._save_config_and_tokenizer(output_dir)

    def _save_config_and_tokenizer(self, output_dir: str) -> None:
        """What stands beside the weights, as in any checkpoint of Transformers."""
        model, tokenizer = self.unwrapped, cast(Any, self.processing_class)
        model.config.architectures = [type(model).__name__.removeprefix("FSDP")]
        model.config.dtype = model.dtype
        for part in (model.config, model.generation_config, tokenizer):
            part.save_pretrained(output_dir)

    def _save_optimizer_and_scheduler(self, output_dir: str) -> None:
        assert self.optimizer is not None
        assert self.lr_scheduler is not None
        save_shares(moments_of(self.unwrapped, self.optimizer), Path(output_dir) / OPTIMIZER)
        if self.args.should_save:
            torch.save(self.lr_scheduler.state_dict(), Path(output_dir) / SCHEDULER_NAME)

    # Loading: the shares of any number of processes.

    def _load_from_checkpoint(
        self, resume_from_checkpoint: str, model: nn.Module | None = None
    ) -> None:
        folder = Path(resume_from_checkpoint)
        with reading(folder / WEIGHTS):
            load_shares(weights_of(self.unwrapped), folder / WEIGHTS)
        self._load_window(folder)

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        assert self.optimizer is not None
        assert self.lr_scheduler is not None
        if checkpoint is None:
            return
        folder = Path(checkpoint)
        with reading(folder / OPTIMIZER):
            load_shares(moments_of(self.unwrapped, self.optimizer), folder / OPTIMIZER)
        with reading(folder / SCHEDULER_NAME):
            self.lr_scheduler.load_state_dict(
                torch.load(folder / SCHEDULER_NAME, map_location="cpu", weights_only=True)
            )
        rates = self.lr_scheduler.get_last_lr()
        for group, rate in zip(self.optimizer.param_groups, rates, strict=True):
            group["lr"] = rate  # as the next step is to use it


def moments_of(model: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """The optimizer's state by the weights' names, started with zeros where there is none yet.

    Rates and decays aren't part of it: the configuration has these, and the schedule.
    """
    found: dict[str, Tensor] = {}
    for name, weight in model.named_parameters():
        if not weight.requires_grad:
            continue
        state: dict[str, Any] = optimizer.state[weight]
        if not state:  # AdamW's, as its first step makes them
            state["step"] = torch.zeros((), dtype=torch.float32, device=weight.device)
            state["exp_avg"] = torch.zeros_like(weight, memory_format=torch.preserve_format)
            state["exp_avg_sq"] = torch.zeros_like(weight, memory_format=torch.preserve_format)
        found |= {f"{name}.{key}": value.detach() for key, value in state.items()}
    return found
