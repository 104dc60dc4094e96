"""The end of a run: the model in its place, and run.json, which says that it is finished."""

from dataclasses import asdict
from typing import Any

import torch

from versatileffn.execution.select import execution_choices
from versatileffn.imports import imported
from versatileffn.provenance import device_name, versions
from versatileffn.training.bad_steps import left_out
from versatileffn.training.collapse import watched
from versatileffn.training.config import TrainConfig
from versatileffn.training.divergence import check_weights
from versatileffn.training.inputs import inputs_sha256
from versatileffn.training.progress import SpeedCallback
from versatileffn.training.run_folder import RunFolder
from versatileffn.training.sharding import local_bytes
from versatileffn.training.trainer import ReuseTrainer
from versatileffn.workspace.durable import beside, remove, sync, write_json, writing
from versatileffn.workspace.folder import publish
from versatileffn.workspace.manifest import digests, read_record


def finish(
    trainer: ReuseTrainer,
    config: TrainConfig,
    folder: RunFolder,
    speed: SpeedCallback,
    seconds: float,
) -> None:
    """Save the trained model and the run's record; all processes call this.

    Args:
        trainer: at the end of its steps.
        config: the run.
        folder: where it is kept.
        speed: measured tokens per second.
        seconds: how long this session took.

    Raises:
        DivergedError: weights aren't finite.
    """
    check_weights(trainer.unwrapped, trainer.state.global_step)
    work = beside(folder.model)
    with writing(folder.model):
        trainer.save_model(str(work / "new"))
        trainer.accelerator.wait_for_everyone()
        if trainer.is_world_process_zero():
            (work / "new" / "training_args.bin").unlink(missing_ok=True)
            publish(work / "new", folder.model)
            remove([work])
            sync(folder.log)
            write_json(folder.summary, _summary(trainer, config, folder, speed, seconds))
    trainer.accelerator.wait_for_everyone()


def _last(history: list[dict[str, Any]], key: str) -> float | None:
    return next((entry[key] for entry in reversed(history) if key in entry), None)


def _summary(
    trainer: ReuseTrainer,
    config: TrainConfig,
    folder: RunFolder,
    speed: SpeedCallback,
    seconds: float,
) -> dict[str, Any]:
    plan, history = trainer.plan, trainer.state.log_history
    inputs = read_record(folder.inputs) or {}
    return {
        "run_id": inputs["run_id"],
        "inputs_sha256": inputs_sha256(inputs),
        "config": config.model_dump(mode="json"),
        "tokens_meta_sha256": inputs["tokens_meta_sha256"],
        "imports": imported(),
        "versions": versions("torch", "transformers"),
        "device": device_name(trainer.args.device),
        "processes": plan.world_size,
        "processes_before": inputs.get("processes_before", []),
        "weight_bytes_per_process": local_bytes(trainer.unwrapped),
        "threads": torch.get_num_threads(),
        "seed": config.run.seed,
        "variant": trainer.telemetry.variant,
        "execution": execution_choices(),  # of this session
        "parameters": trainer.unwrapped.num_parameters(),
        "steps": plan.max_steps,
        "schedule_steps": trainer.schedule_steps,
        "planned_before": inputs.get("planned_before", []),
        "epochs": plan.epochs_at(plan.max_steps),
        "tokens_seen": plan.max_steps * config.run.tokens_per_batch,
        "tokens_per_second": speed.tokens_per_second,
        "seconds_last_session": seconds,
        "train_loss": _last(history, "loss"),
        "eval_loss": _last(history, "eval_loss"),
        "eval_bits_per_byte": _last(history, "eval_bits_per_byte"),
        "collapsed": [asdict(each) for each in watched(folder.log, trainer.schedule_steps).found],
        "left_out": left_out(folder.log),
        "eval_tokens": len(trainer.eval_windows) * (config.data.seq_len - 1),
        "files": {f"model/{name}": digest for name, digest in digests(folder.model).items()},
    }
