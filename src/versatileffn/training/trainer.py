"""Transformers' Trainer, with our data order, our decay groups, telemetry and held-out loss."""

from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset
from transformers import TrainingArguments, default_data_collator
from transformers.trainer_callback import PrinterCallback

from versatileffn.data.packed import UNSCORED, PackedDataset
from versatileffn.data.split_text import SplitText
from versatileffn.evaluation.held_out import held_out_loss
from versatileffn.ffn.router_bias import RouterBias
from versatileffn.training.batches import BatchPlan, WindowBatches
from versatileffn.training.callbacks import deciders
from versatileffn.training.checkpoint_trainer import CheckpointTrainer
from versatileffn.training.consistency import consistency_loss
from versatileffn.training.divergence import check_logs
from versatileffn.training.open_loops import OpenLoopsCallback
from versatileffn.training.optim_config import ConsistencySection
from versatileffn.training.sharding import whole
from versatileffn.training.stopping import ignore_signals
from versatileffn.training.telemetry import Telemetry, learned_gains


class ReuseTrainer(CheckpointTrainer):
    """The training loop of Transformers over windows of tokens, for reuse models and dense ones.

    Args:
        model: to be trained; any causal model whose training loss is in nats per token.
        args: Transformers' arguments, see `training_arguments`.
        plan: which windows are read when.
        train_windows: map-style windows of `input_ids` and `labels`.
        held_out: the held-out split, in windows of the same length.
        tokens_per_step: tokens of one optimizer step over all processes.
        eval_windows: held-out windows per evaluation, from the first; None takes all.
        tokenizer: saved with every checkpoint.
        schedule_steps: steps over which the learning rate falls; None: the plan's.
        consistency: how shallow exits are held to the deep ones; None: not at all.
    """

    def __init__(
        self,
        model: nn.Module,
        args: TrainingArguments,
        plan: BatchPlan,
        train_windows: Dataset,
        held_out: PackedDataset,
        tokens_per_step: int,
        eval_windows: int | None = None,
        tokenizer: Any = None,
        schedule_steps: int | None = None,
        consistency: ConsistencySection | None = None,
    ) -> None:
        self.plan, self.consistency = plan, consistency
        self.tokens_per_step = tokens_per_step
        self.held_out_text = SplitText(held_out)
        self.eval_windows = range(len(held_out))[:eval_windows]
        self.schedule_steps = schedule_steps or plan.max_steps
        super().__init__(
            model=model,
            args=args,
            train_dataset=train_windows,
            eval_dataset=held_out,
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
            worker_init_fn=ignore_signals,
            pin_memory=torch.cuda.is_available() and not self.args.use_cpu,
            # Its own generator: otherwise every iterator would advance the global one.
            generator=torch.Generator().manual_seed(self.plan.seed),
        )

    def get_batch_samples(self, *args: Any, **kwargs: Any) -> tuple[list, Any]:
        """Transformers' micro-batches of a step and what they score: never nothing.

        A step of windows that all repeat themselves has a loss of 0 then, and not 0 / 0.
        """
        batches, scored = super().get_batch_samples(*args, **kwargs)
        return batches, scored.clamp_min(1) if isinstance(scored, Tensor) else scored

    def get_decay_parameter_names(self, model: nn.Module) -> list[str]:
        """All but norms, biases and reuse gains; embeddings do decay."""
        return [name for name in super().get_decay_parameter_names(model) if "gain" not in name]

    def create_scheduler(
        self, num_training_steps: int, optimizer: torch.optim.Optimizer | None = None
    ) -> Any:
        """Transformers' cosine over the steps of the schedule, afterwards held at its end."""
        last = self.schedule_steps
        scheduler: Any = super().create_scheduler(last, optimizer)
        scheduler.lr_lambdas = [
            lambda step, rate=rate: rate(min(step, last)) for rate in scheduler.lr_lambdas
        ]
        return scheduler

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
        """The model's own training loss, with `consistency` where that is asked for; on logged
        steps its plans are read as well."""
        request = self.telemetry.request() if model.training and self._logged_step() else {}
        loss, outputs = super().compute_loss(
            model, {**inputs, **request}, return_outputs=True, num_items_in_batch=num_items_in_batch
        )
        if model.training and self._logged_step():
            self.telemetry.add(outputs, inputs["input_ids"])
            if getattr(self.train_dataset, "repetition_filter", False):
                unscored = (inputs["labels"][:, 1:] == UNSCORED).all(dim=1)
                self.telemetry.add_value("repeated_windows", unscored.float().mean().item())
        if model.training and self.consistency is not None:
            away = self._consistency(model, inputs, outputs.logits, num_items_in_batch)
            loss = loss + self.consistency.coef * away
        return (loss, outputs) if return_outputs else loss

    def _consistency(
        self, model: nn.Module, inputs: dict[str, Any], logits: Tensor, num_items: Any
    ) -> Tensor:
        """Nats per token from the capped exits to the free ones, averaged as the loss is."""
        total = consistency_loss(model, inputs, logits, self.unwrapped)
        counted = (inputs["labels"][:, 1:] != UNSCORED).sum()
        if self._logged_step():
            self.telemetry.add_value("consistency", total.item() / max(int(counted), 1))
        if num_items is None:
            return total / counted.clamp_min(1)
        processes = self.accelerator.num_processes  # as Trainer's loss is, see its compute_loss
        return total / num_items * (processes if self.args.average_tokens_across_devices else 1)

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Add what belongs to the entry, pass it on, and keep the Trainer's own history small.

        Raises:
            DivergedError: loss, gradient norm or held-out loss is no longer a finite number.
        """
        if "train_runtime" in logs:
            return  # its averages would leave out what an interrupted session trained
        if "loss" in logs:
            loss = self.window.take(self.state.global_step, self.accelerator)
            logs = {key: value for key, value in logs.items() if key != "loss" or loss is not None}
            if loss is not None:
                logs["loss"] = loss
            check_logs(logs, self.state.global_step)
            logs.update(self._step_details())
        if "eval_loss" in logs:
            check_logs(logs, self.state.global_step)
        super().log(logs)
        history = self.state.log_history
        history[-1] = {key: value for key, value in history[-1].items() if "/" not in key}

    def _get_grad_norm(self, model: nn.Module, grad_norm: Any = None) -> Any:
        """The step's, which all its micro-batches have been added to; None: it is left out."""
        norm = super()._get_grad_norm(model, grad_norm)
        if self.bad_steps is None:
            return norm
        loss = self.window.step_loss(self.accelerator)
        norms = self.accelerator.gather(loss.new_tensor(float(whole(torch.as_tensor(norm)))))
        step = self.state.global_step + 1
        taken = self.bad_steps.take(step, loss.item(), norms.max().item())
        self.window.end_step(taken)
        if taken:
            return norm
        self.telemetry.forget()
        model.zero_grad(set_to_none=True)  # the optimizer passes over what has no gradient
        for module in self.unwrapped.modules():
            if isinstance(module, RouterBias):
                module.load = None
        return None

    def _step_details(self) -> dict[str, float]:
        details: dict[str, float] = {"tokens": self.state.global_step * self.tokens_per_step}
        if deciders(self.unwrapped, "tau"):
            details["tau"] = self.unwrapped.config.tau
        if any(isinstance(each, OpenLoopsCallback) for each in self.callback_handler.callbacks):
            details["open_loops"] = deciders(self.unwrapped, "open_loops")[0].open_loops
        if self.telemetry.fed is not None:
            details["tokens_crc32"] = self.telemetry.fed
        values = dict(sorted(self.telemetry.take().items()))
        if values:
            mine = torch.tensor(list(values.values()), device=self.args.device)
            means = self.accelerator.reduce(mine, "mean").tolist()
            details.update(zip(values, means, strict=True))
        details.update(learned_gains(self.unwrapped))
        return details

    # Held-out loss.

    def evaluate(self, *args: Any, **kwargs: Any) -> dict[str, float]:
        """Mean cross entropy of the held-out windows (nats/token); moves no random state."""
        found = held_out_loss(
            self.model,
            cast(PackedDataset, self.eval_dataset),
            self.args.per_device_eval_batch_size,
            self.eval_windows,
            self.args.bf16,
            self.held_out_text,
        )
        metrics = {
            "eval_loss": found.nats_per_token,
            "eval_bits_per_byte": found.bits_per_byte,
        }
        self.log(metrics)
        self.control = self.callback_handler.on_evaluate(
            self.args, self.state, self.control, metrics
        )
        return metrics
