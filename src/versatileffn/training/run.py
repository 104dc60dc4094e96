"""One training run from configuration to finished folder, resumed where it was interrupted."""

import contextlib
import os
import platform
import time
from pathlib import Path
from typing import Any

import torch
from torch.utils.data import Dataset, Subset

from versatileffn.data.packed import PackedDataset
from versatileffn.data.split_text import SplitText
from versatileffn.data.tokenizers import load_tokenizer
from versatileffn.errors import ConfigError
from versatileffn.files import beside, write_json
from versatileffn.models.checkpoint import without_progress_bars
from versatileffn.provenance import versions
from versatileffn.training.arguments import check_trackers, training_arguments
from versatileffn.training.batches import BatchPlan, plan_batches
from versatileffn.training.callbacks import (
    LastStepCallback,
    LogFileCallback,
    ProgressCallback,
    SpeedCallback,
    TauCallback,
)
from versatileffn.training.checkpoints import commit, step_of
from versatileffn.training.config import TrainConfig
from versatileffn.training.evaluation import TaskCallback, TaskEvaluator
from versatileffn.training.init import build_model
from versatileffn.training.run_folder import RunFolder, run_inputs
from versatileffn.training.trainer import ReuseTrainer, whole_batches


def train(config: TrainConfig, evaluate_tasks: TaskEvaluator | None = None) -> Path:
    """Train a model; in a folder with an unfinished run of the same configuration, continue it.

    A run that was killed at any moment and continued gives the same weights and logged losses,
    bit for bit, as one that was not, on the same machine and number of processes. A finished run
    is left as it is. Under `torchrun` every process calls this.

    Args:
        config: the run, see `TrainConfig`.
        evaluate_tasks: scores the tasks that `config.eval` names.

    Returns:
        The run's folder: `model/` (weights, configuration, tokenizer), `log.jsonl`, `run.json`,
        `inputs.json`, `checkpoints/`, and `tensorboard/` where it is reported to.

    Raises:
        ConfigError: settings contradict each other, the checkpoint, or the run in the folder; or
            tasks should be scored, and nothing is given that does it.
        DataError: the token folder is missing, damaged, or too short for one window.
        CheckpointError: the checkpoint to start from can't be read, or the one to resume from is
            damaged.
    """
    with without_progress_bars():
        return _train(config, evaluate_tasks)


def _train(config: TrainConfig, evaluate_tasks: TaskEvaluator | None) -> Path:
    check_trackers(config.run.report_to)
    if config.eval is not None and evaluate_tasks is None:
        raise ConfigError(
            "eval.tasks needs something that scores them: pass evaluate_tasks="
            "versatileffn.evaluation.task_scores.TaskScores(tasks, limit), as `versatileffn train` "
            "does"
        )
    folder = RunFolder(Path(config.run.output_dir))
    world_size, rank = int(os.environ.get("WORLD_SIZE", 1)), int(os.environ.get("RANK", 0))
    data = PackedDataset(config.data.tokens, split="train", seq_len=config.data.seq_len)
    held_out = PackedDataset(config.data.tokens, split="val", seq_len=config.data.seq_len)
    plan = plan_batches(config, len(data), world_size)
    inputs = run_inputs(config, world_size)
    folder.check(inputs)
    if folder.finished:
        _say(rank, f"{folder.path} is finished already: its model is in {folder.model}")
        return folder.path

    tokenizer = load_tokenizer(config.data.tokens)
    model = build_model(
        config.model,
        data.meta.vocab_size,
        data.meta.eos_token_id,
        config.data.seq_len,
        config.run.seed,
    )
    with folder.held() if rank == 0 else contextlib.nullcontext():
        if rank == 0:
            folder.prepare(inputs)
        eval_windows, eval_batch_size = _eval_windows(held_out, config, world_size)
        args = training_arguments(config, plan, folder.checkpoints, eval_batch_size)
        trainer = ReuseTrainer(
            model,
            args,
            plan,
            data,
            eval_windows,
            tokens_per_step=config.run.tokens_per_batch,
            bytes_per_token=SplitText(held_out).bytes_per_scored_token(eval_windows),
            keep=config.run.save_total_limit,
            tokenizer=tokenizer,
        )
        if config.eval is not None and evaluate_tasks is not None:
            every = config.eval.every_steps
            trainer.add_callback(TaskCallback(evaluate_tasks, every, trainer.log))
        _run(trainer, config, folder, inputs, rank)
    _say(rank, f"finished: {folder.model}")
    return folder.path


def _run(
    trainer: ReuseTrainer,
    config: TrainConfig,
    folder: RunFolder,
    inputs: dict[str, Any],
    rank: int,
) -> None:
    """Train in a folder that is held, from its last checkpoint if it has one."""
    plan = trainer.plan
    trainer.accelerator.wait_for_everyone()  # until the folder is prepared
    checkpoint = folder.check(inputs)
    resumed_step = step_of(checkpoint) if checkpoint else 0
    speed = SpeedCallback(config.run.tokens_per_batch)
    _add_callbacks(trainer, config, plan, folder, speed)
    _announce(rank, config, plan, trainer, resumed_step)

    # The noise of each process is its own, and doesn't depend on how the model was built.
    torch.manual_seed(config.run.seed * 100_003 + rank)
    started = time.time()
    trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
    _finish(trainer, config, plan, folder, speed, time.time() - started)


def _say(rank: int, text: str) -> None:
    if rank == 0:
        print(text, flush=True)


def _eval_windows(
    held_out: PackedDataset, config: TrainConfig, world_size: int
) -> tuple[Dataset, int]:
    windows: Dataset = held_out
    if config.run.eval_windows is not None and config.run.eval_windows < len(held_out):
        windows = Subset(held_out, range(config.run.eval_windows))
    return whole_batches(windows, config.run.per_device_eval_batch_size, world_size)


def _add_callbacks(
    trainer: ReuseTrainer,
    config: TrainConfig,
    plan: BatchPlan,
    folder: RunFolder,
    speed: SpeedCallback,
) -> None:
    if trainer.telemetry.variant == "versatile":
        trainer.add_callback(TauCallback(config.optim.tau))
    if "tensorboard" in config.run.report_to and trainer.is_world_process_zero():
        from torch.utils.tensorboard import SummaryWriter
        from transformers.integrations import TensorBoardCallback

        trainer.add_callback(TensorBoardCallback(SummaryWriter(str(folder.path / "tensorboard"))))
    trainer.add_callback(LastStepCallback(plan))
    trainer.add_callback(LogFileCallback(folder.log))
    trainer.add_callback(ProgressCallback(speed))
    trainer.add_callback(speed)  # last: printing and writing are not training time


def _announce(
    rank: int, config: TrainConfig, plan: BatchPlan, trainer: ReuseTrainer, resumed_step: int
) -> None:
    parameters = trainer.accelerator.unwrap_model(trainer.model).num_parameters()
    _say(
        rank,
        f"{parameters:,} parameters ({trainer.telemetry.variant}), {plan.max_steps:,} steps of "
        f"{config.run.tokens_per_batch:,} tokens = {plan.epochs_at(plan.max_steps):.2f} epochs, "
        f"{plan.accumulation} micro-batches of {plan.micro_batch} windows on {plan.world_size} "
        f"process(es), {trainer.args.device}"
        + (f"; resumed after step {resumed_step}" if resumed_step else ""),
    )


def _last(history: list[dict[str, Any]], key: str) -> float | None:
    return next((entry[key] for entry in reversed(history) if key in entry), None)


def _finish(
    trainer: ReuseTrainer,
    config: TrainConfig,
    plan: BatchPlan,
    folder: RunFolder,
    speed: SpeedCallback,
    seconds: float,
) -> None:
    if not folder.has_model:
        partial = beside(folder.model)
        trainer.save_model(str(partial))
        trainer.accelerator.wait_for_everyone()
        if trainer.is_world_process_zero():
            (partial / "training_args.bin").unlink(missing_ok=True)
            commit(partial, folder.model)
    if trainer.is_world_process_zero():
        history = trainer.state.log_history
        write_json(folder.summary, {
            "config": config.model_dump(mode="json"),
            "tokens_meta_sha256": run_inputs(config, plan.world_size)["tokens_meta_sha256"],
            "versions": versions("torch", "transformers"),
            "device": device_name(trainer.args.device),
            "processes": plan.world_size,
            "threads": torch.get_num_threads(),
            "seed": config.run.seed,
            "variant": trainer.telemetry.variant,
            "parameters": trainer.accelerator.unwrap_model(trainer.model).num_parameters(),
            "steps": plan.max_steps,
            "epochs": plan.epochs_at(plan.max_steps),
            "tokens_seen": plan.max_steps * config.run.tokens_per_batch,
            "tokens_per_second": speed.tokens_per_second,
            "seconds_last_session": seconds,
            "train_loss": _last(history, "loss"),
            "eval_loss": _last(history, "eval_loss"),
            "eval_bits_per_byte": _last(history, "eval_bits_per_byte"),
            "eval_tokens": trainer.eval_window_count * (config.data.seq_len - 1),
        })  # fmt: skip
    trainer.accelerator.wait_for_everyone()


def device_name(device: torch.device) -> str:
    """What a device is called: the accelerator's name, or the processor's architecture."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"{device.type} ({platform.machine()})"
