"""One training run from configuration to finished folder, resumed where it was interrupted."""

import contextlib
import os
import signal
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from versatileffn.data.packed import PackedDataset
from versatileffn.data.tokenizers import load_tokenizer
from versatileffn.errors import DivergedError
from versatileffn.evaluation.task_scores import TaskScores
from versatileffn.execution.select import forget_choices
from versatileffn.models.checkpoint import without_progress_bars
from versatileffn.models.family import is_reuse
from versatileffn.training.anneal_tau import AnnealTau
from versatileffn.training.announcement import announce, say
from versatileffn.training.arguments import check_trackers, training_arguments
from versatileffn.training.bad_steps import BadSteps
from versatileffn.training.batches import BatchPlan, plan_batches
from versatileffn.training.callbacks import (
    LastStepCallback,
    RouterBiasCallback,
    deciders,
)
from versatileffn.training.checkpoint_store import CheckpointStore
from versatileffn.training.checkpoints import prune, step_of
from versatileffn.training.collapse import CollapseCallback
from versatileffn.training.config import TrainConfig
from versatileffn.training.divergence import record_divergence
from versatileffn.training.evaluation import TaskCallback, TaskEvaluator
from versatileffn.training.init import model_config
from versatileffn.training.inputs import Inputs, run_inputs
from versatileffn.training.log_file import LogCallback
from versatileffn.training.open_loops import OpenLoopsCallback
from versatileffn.training.parallel import check_launch, shards
from versatileffn.training.peers import losing_peers
from versatileffn.training.progress import SpeedCallback
from versatileffn.training.record import finish
from versatileffn.training.run_folder import RunFolder
from versatileffn.training.shares_trainer import SharesTrainer
from versatileffn.training.start import StartModel
from versatileffn.training.stopping import StopCallback, StopRequest
from versatileffn.training.tensorboard import tensorboard_callback
from versatileffn.training.tokens import verify_tokens
from versatileffn.training.trainer import ReuseTrainer


def train(config: TrainConfig, evaluate_tasks: TaskEvaluator | None = None) -> Path:
    """Train a model; in a folder with an unfinished run of the same configuration, continue it.

    A run that was stopped or killed at any moment and continued gives the same weights and logged
    losses, bit for bit, as one that was not, on the same machine and number of processes. A
    finished run is left as it is, or made longer, see `run.schedule_steps`. Under `torchrun` every
    process calls this.

    Ctrl-C, SIGTERM, SIGHUP and SIGUSR1, to any of the processes, and `run.deadline`, end the run
    after the step it is in, with a checkpoint; a second Ctrl-C ends it at once.

    Args:
        config: the run, see `TrainConfig`.
        evaluate_tasks: scores the tasks that `config.eval` names, instead of `TaskScores`.

    Returns:
        The run's folder: `model/` (weights, configuration, tokenizer), `log.jsonl`, `run.json`,
        `inputs.json`, `checkpoints/`, and `tensorboard/` where it is reported to.

    Raises:
        ConfigError: settings contradict each other, the checkpoint, or the run in the folder.
        DataError: the token folder is missing, damaged, or too short for one window.
        CheckpointError: the checkpoint to start from can't be read, or there are some to resume
            from and none is whole.
        DivergedError: training ran into numbers that aren't finite, now or before.
        ResourceError: memory or disk is too small.
        KeyboardInterrupt: the run was stopped by Ctrl-C, and can be continued.
        SystemExit: it was stopped by SIGTERM, SIGHUP or SIGUSR1 (code 143, 129, 138), and can be
            continued.
    """
    with without_progress_bars(), losing_peers():
        return _train(config, evaluate_tasks)


def _train(config: TrainConfig, evaluate_tasks: TaskEvaluator | None) -> Path:
    began = time.monotonic()
    check_trackers(config.run.report_to)
    if config.eval is not None and evaluate_tasks is None:
        evaluate_tasks = TaskScores(config.eval.tasks, config.eval.tasks_limit)
    folder = RunFolder(Path(config.run.output_dir))
    world_size, rank = int(os.environ.get("WORLD_SIZE", 1)), int(os.environ.get("RANK", 0))
    check_launch(config.parallel, world_size)
    feed = _plan_feed(config, world_size)
    folder.check(feed.inputs)
    if folder.finished(feed.plan.max_steps):
        say(rank, f"{folder.path} is finished already: its model is in {folder.model}")
        return folder.path
    tokenizer = load_tokenizer(config.data.tokens)
    if rank == 0:
        verify_tokens(feed.train.folder, feed.train.meta)
    meta = feed.train.meta
    planned = model_config(config.model, meta.vocab_size, meta.eos_token_id, config.data.seq_len)
    start = StartModel(config, planned, feed.plan, rank)
    with folder.held() if rank == 0 else contextlib.nullcontext():
        binding = folder.prepare(feed.inputs) if rank == 0 else None
        trainer = _build_trainer(config, feed, start, tokenizer, folder)
        if config.eval is not None and evaluate_tasks is not None:
            every = config.eval.every_steps
            trainer.add_callback(TaskCallback(evaluate_tasks, every, trainer.log))
        keep = config.run.save_total_limit
        if rank == 0:
            prune(folder.checkpoints, keep)  # as the last save would
        trainer.accelerator.wait_for_everyone()  # until the folder is prepared
        checkpoint = folder.check(feed.inputs)
        trainer.store = CheckpointStore(
            folder.checkpoints, keep, binding, folder.log, start.checkpoint_bytes
        )
        trainer.store.make_room()
        try:
            _run(trainer, config, folder, checkpoint, began)
        except DivergedError as error:
            if rank == 0:
                record_divergence(folder.divergence, error)
            raise
    say(rank, f"finished: {folder.model}")
    return folder.path


@dataclass(frozen=True)
class _Feed:
    """What a run reads in which order, and all that its steps depend on."""

    train: PackedDataset
    held_out: PackedDataset
    plan: BatchPlan
    inputs: Inputs


def _plan_feed(config: TrainConfig, processes: int) -> _Feed:
    tokens, seq_len = config.data.tokens, config.data.seq_len
    train = PackedDataset(tokens, "train", seq_len, config.data.repetition_filter)
    held_out = PackedDataset(tokens, "val", seq_len)
    plan = plan_batches(config, len(train), processes, train.shuffled)
    return _Feed(train, held_out, plan, run_inputs(config, plan))


def _build_trainer(
    config: TrainConfig, feed: _Feed, start: StartModel, tokenizer: Any, folder: RunFolder
) -> ReuseTrainer:
    """Spread the model over the processes, which join here; its trainer in this one."""
    args = training_arguments(config, feed.plan, folder.checkpoints)
    start.spread(args.device)
    trainer = (SharesTrainer if shards(config.parallel) else ReuseTrainer)(
        start.model,
        args,
        feed.plan,
        feed.train,
        feed.held_out,
        tokens_per_step=config.run.tokens_per_batch,
        eval_windows=config.run.eval_windows,
        tokenizer=tokenizer,
        schedule_steps=feed.inputs["schedule_steps"],
        consistency=config.optim.consistency,
    )
    if config.optim.bad_steps is not None:
        speaks = args.process_index == 0
        trainer.bad_steps = BadSteps(config.optim.bad_steps, feed.plan, folder.log, speaks)
    return trainer


def _run(
    trainer: ReuseTrainer,
    config: TrainConfig,
    folder: RunFolder,
    checkpoint: Path | None,
    began: float,
) -> None:
    """Train in a folder that is held, from its last checkpoint if it has one.

    The deadline counts from `began`, by the monotonic clock.
    """
    resumed_step = step_of(checkpoint) if checkpoint else 0
    trainer.args.eval_on_start = resumed_step == 0
    speed = SpeedCallback(config.run.tokens_per_batch)
    stop = StopRequest(began + config.run.deadline if config.run.deadline else None)
    stop_callback = StopCallback(stop)
    _add_callbacks(trainer, config, folder, speed, resumed_step)
    trainer.add_callback(stop_callback)  # after all that a step is followed by
    announce(config, trainer, resumed_step)

    # The noise of each process is its own, and doesn't depend on how the model was built.
    torch.manual_seed(config.run.seed * 100_003 + trainer.args.process_index)
    forget_choices()
    started = time.time()
    with stop.listening():
        trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
        if not stop_callback.signal:
            finish(trainer, config, folder, speed, time.time() - started)
            return
    say(trainer.args.process_index, f"step {trainer.state.global_step} is saved")
    if stop_callback.signal == signal.SIGINT:
        raise KeyboardInterrupt
    raise SystemExit(128 + stop_callback.signal)


def _add_callbacks(
    trainer: ReuseTrainer,
    config: TrainConfig,
    folder: RunFolder,
    speed: SpeedCallback,
    resumed_step: int,
) -> None:
    if deciders(trainer.unwrapped, "tau"):
        tau = config.optim.tau.model_dump()
        trainer.add_callback(AnnealTau(**tau, steps=trainer.schedule_steps))
    if is_reuse(trainer.unwrapped.config):
        trainer.add_callback(RouterBiasCallback())
    curriculum = config.optim.loop_curriculum
    if curriculum is not None:
        most = trainer.unwrapped.config.ffn().loops
        trainer.add_callback(OpenLoopsCallback(curriculum, trainer.schedule_steps, most))
    if "tensorboard" in config.run.report_to and trainer.is_world_process_zero():
        trainer.add_callback(tensorboard_callback(folder.path / "tensorboard", resumed_step))
    trainer.add_callback(LastStepCallback(trainer.plan))
    opens = curriculum is not None
    trainer.add_callback(CollapseCallback(folder.log, trainer.schedule_steps, opens))
    trainer.add_callback(LogCallback(folder.log, speed))
    trainer.add_callback(speed)  # last: printing and writing are not training time
