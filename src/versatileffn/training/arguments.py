"""From our configuration to Transformers' TrainingArguments."""

from pathlib import Path

import torch
from transformers import TrainingArguments
from transformers.integrations import get_available_reporting_integrations

from versatileffn.errors import ConfigError
from versatileffn.training.batches import BatchPlan
from versatileffn.training.config import TrainConfig


def check_trackers(names: list[str]) -> None:
    """See that each tracker's package is installed.

    Raises:
        ConfigError: one isn't.
    """
    for name in names:
        if name not in get_available_reporting_integrations():
            raise ConfigError(
                f"run.report_to={names}: {name} isn't installed; install it, or leave it out"
            )


def training_arguments(
    config: TrainConfig, plan: BatchPlan, checkpoints: Path
) -> TrainingArguments:
    """The Trainer's arguments for a run; creating them joins the process group under torchrun.

    Args:
        config: the run.
        plan: how its windows are spread over steps and processes.
        checkpoints: folder that receives `checkpoint-<step>` folders.
    """
    optim, run = config.optim, config.run
    args = TrainingArguments(
        output_dir=str(checkpoints),
        seed=run.seed,
        # Transformers refuses bf16 on a CPU unless it is told that a CPU is meant.
        use_cpu=run.use_cpu or not torch.accelerator.is_available(),
        bf16=run.bf16,
        tf32=None,
        torch_compile=run.torch_compile,
        gradient_checkpointing=run.gradient_checkpointing,
        gradient_checkpointing_kwargs={"use_reentrant": False},
        # length and size
        max_steps=plan.max_steps,
        per_device_train_batch_size=plan.micro_batch,
        per_device_eval_batch_size=run.per_device_eval_batch_size,
        gradient_accumulation_steps=plan.accumulation,
        average_tokens_across_devices=True,
        ddp_find_unused_parameters=False,  # every parameter of every variant gets a gradient
        # AdamW and its schedule
        optim="adamw_torch_fused",
        learning_rate=optim.learning_rate,
        adam_beta1=optim.adam_beta1,
        adam_beta2=optim.adam_beta2,
        adam_epsilon=optim.adam_epsilon,
        weight_decay=optim.weight_decay,
        max_grad_norm=optim.max_grad_norm,
        lr_scheduler_type="cosine_with_min_lr",
        lr_scheduler_kwargs={"min_lr_rate": optim.min_lr_rate},
        warmup_steps=optim.warmup_ratio,  # below 1, Transformers reads it as a share of the steps
        # how often
        logging_strategy="steps",
        logging_steps=run.logging_steps,
        logging_nan_inf_filter=False,
        eval_strategy="steps",
        eval_steps=run.eval_steps,
        save_strategy="steps",
        save_steps=run.save_steps,
        save_total_limit=None,  # pruning is ours, it must not meet half-written folders
        # what it must leave to us
        report_to=[name for name in run.report_to if name != "tensorboard"],
        disable_tqdm=True,
        remove_unused_columns=False,
    )
    args._n_gpu = min(args.n_gpu, 1)  # several GPUs mean several processes, never DataParallel
    return args
