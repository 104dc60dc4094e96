"""Transformers' Trainer, with our data order, our decay groups, telemetry and whole checkpoints."""

import math
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset, Subset
from transformers import Trainer, TrainingArguments, default_data_collator
from transformers.trainer import OPTIMIZER_NAME, SCHEDULER_NAME
from transformers.trainer_callback import PrinterCallback

from versatileffn.data.split_text import bits_per_byte
from versatileffn.errors import ConfigError
from versatileffn.files import PARTIAL
from versatileffn.training.batches import BatchPlan, WindowBatches
from versatileffn.training.checkpoints import commit, prune, seal
from versatileffn.training.telemetry import Telemetry, learned_gains


class ReuseTrainer(Trainer):
    """The training loop of Transformers over windows of tokens, for reuse models and dense ones.

    Args:
        model: to be trained; any causal model whose training loss is in nats per token.
        args: Transformers' arguments, see `training_arguments`.
        plan: which windows are read when.
        train_windows: map-style windows of `input_ids` and `labels`.
        eval_windows: held-out windows of the same length.
        tokens_per_step: tokens of one optimizer step over all processes.
        bytes_per_token: mean bytes of text per predicted held-out token, for bits per byte.
        keep: newest checkpoints that are kept.
        tokenizer: saved with every checkpoint.
    """

    def __init__(
        self,
        model: nn.Module,
        args: TrainingArguments,
        plan: BatchPlan,
        train_windows: Dataset,
        eval_windows: Dataset,
        tokens_per_step: int,
        bytes_per_token: float,
        keep: int = 2,
        tokenizer: Any = None,
    ) -> None:
        self.plan = plan
        self.tokens_per_step = tokens_per_step
        self.bytes_per_token = bytes_per_token
        self.keep = keep
        self.eval_window_count = len(eval_windows)  # type: ignore[arg-type]
        self._writing_checkpoint = False
        super().__init__(
            model=model,
            args=args,
            train_dataset=train_windows,
            eval_dataset=eval_windows,
            data_collator=default_data_collator,
            processing_class=tokenizer,
        )
        self.remove_callback(PrinterCallback)
        self._loss_shifts_labels = True  # labels are the inputs; T windows predict T − 1 tokens
        self.telemetry = Telemetry(model)

    # Data: the order is ours, and skipping to a step reads nothing.

    def get_train_dataloader(self) -> DataLoader:
        """This process's micro-batches of the whole run, in the order of the plan."""
        return DataLoader(
            cast(Dataset, self.train_dataset),
            batch_sampler=WindowBatches(self.plan, self.args.process_index),
            collate_fn=self.data_collator,
            num_workers=self.args.dataloader_num_workers,
            pin_memory=torch.cuda.is_available() and not self.args.use_cpu,
            # Its own generator: otherwise every iterator would advance the global one.
            generator=torch.Generator().manual_seed(self.plan.seed),
        )

    def get_decay_parameter_names(self, model: nn.Module) -> list[str]:
        """All but norms, biases and reuse gains; embeddings do decay."""
        return [name for name in super().get_decay_parameter_names(model) if "gain" not in name]

    # Telemetry: only on steps that are logged.

    def _logged_step(self) -> bool:
        step = self.state.global_step + 1
        return step % self.state.logging_steps == 0 or step >= self.state.max_steps

    def compute_loss(
        self,
        model: nn.Module,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: Tensor | int | None = None,
    ) -> Any:
        """The model's own training loss; on logged steps its plans are read as well."""
        request = self.telemetry.request() if model.training and self._logged_step() else {}
        loss, outputs = super().compute_loss(
            model, {**inputs, **request}, return_outputs=True, num_items_in_batch=num_items_in_batch
        )
        if model.training and self._logged_step():
            self.telemetry.add(outputs)
        return (loss, outputs) if return_outputs else loss

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Add what belongs to the entry, pass it on, and keep the Trainer's own history small.

        Raises:
            ConfigError: the loss is no longer a finite number.
        """
        if "train_runtime" in logs:
            return  # its averages would leave out what an interrupted session trained
        if "loss" in logs:
            if not math.isfinite(logs["loss"]):
                raise ConfigError(
                    f"training diverged: the loss of step {self.state.global_step} is "
                    f"{logs['loss']}; lower optim.learning_rate and choose a new run.output_dir"
                )
            logs.update(self._step_details())
        if "eval_loss" in logs:
            logs["eval_bits_per_byte"] = bits_per_byte(logs["eval_loss"], self.bytes_per_token)
        super().log(logs)
        history = self.state.log_history
        history[-1] = {key: value for key, value in history[-1].items() if "/" not in key}

    def _step_details(self) -> dict[str, float]:
        details: dict[str, float] = {"tokens": self.state.global_step * self.tokens_per_step}
        if self.telemetry.variant == "versatile":
            details["tau"] = self.accelerator.unwrap_model(self.model).config.tau
        names, means = self.telemetry.take()
        if means is not None:
            means = self.accelerator.reduce(means, "mean")
            details.update(zip(names, means.tolist(), strict=True))
        details.update(learned_gains(cast(nn.Module, self.model)))
        return details

    # Held-out loss.

    def evaluate(self, *args: Any, **kwargs: Any) -> dict[str, float]:
        """Mean cross entropy of the held-out windows (nats/token); moves no random state."""
        with torch.random.fork_rng(devices=[]):
            return super().evaluate(*args, **kwargs)

    # Checkpoints: written beside, renamed when every process is done.

    def _get_output_dir(self, trial: Any) -> str:
        folder = super()._get_output_dir(trial)
        return str(Path(folder) / PARTIAL) if self._writing_checkpoint else folder

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        if checkpoint is None or self.is_fsdp_enabled or self.is_deepspeed_enabled:
            super()._load_optimizer_and_scheduler(checkpoint)
            return
        # Not the Trainer's way: with several CPU processes it maps to a device "cpu:0", which
        # torch.load doesn't know.
        parts: dict[str, Any] = {OPTIMIZER_NAME: self.optimizer, SCHEDULER_NAME: self.lr_scheduler}
        for name, part in parts.items():
            state = torch.load(Path(checkpoint) / name, map_location="cpu", weights_only=True)
            part.load_state_dict(state)

    def _save_checkpoint(self, model: nn.Module, trial: Any) -> None:
        self._writing_checkpoint = True
        try:
            super()._save_checkpoint(model, trial)
        finally:
            self._writing_checkpoint = False
        self.accelerator.wait_for_everyone()
        if self.args.should_save:
            folder = Path(cast(str, self.args.output_dir))
            name = f"checkpoint-{self.state.global_step}"
            seal(folder / PARTIAL / name)
            commit(folder / PARTIAL / name, folder / name)
            (folder / PARTIAL).rmdir()
            prune(folder, self.keep)
        self.accelerator.wait_for_everyone()


def whole_batches(windows: Dataset, batch_size: int, world_size: int) -> tuple[Dataset, int]:
    """The held-out windows that all processes share evenly, and how many each takes at once.

    With several processes the last incomplete global batch is left out, because the Trainer would
    fill it with repeated windows; with one process nothing is left out.
    """
    total = len(windows)  # type: ignore[arg-type]
    batch_size = min(batch_size, max(1, total // world_size))
    if world_size == 1 or total < world_size:
        return windows, batch_size
    return Subset(windows, range(total - total % (batch_size * world_size))), batch_size
