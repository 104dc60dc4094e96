"""What a run says of itself before its first step; one of its processes speaks."""

from versatileffn.training.config import TrainConfig
from versatileffn.training.open_loops import notes
from versatileffn.training.parallel import shards
from versatileffn.training.sharding import local_bytes
from versatileffn.training.trainer import ReuseTrainer
from versatileffn.workspace.durable import size_text


def say(rank: int, text: str) -> None:
    """Print a line, in the first process."""
    if rank == 0:
        print(text, flush=True)


def announce(config: TrainConfig, trainer: ReuseTrainer, resumed_step: int) -> None:
    """Say what is trained, on how much, by how many; and what else the user should know.

    Args:
        config: the run.
        trainer: about to begin.
        resumed_step: optimizer steps that are finished.
    """
    plan = trainer.plan
    say(
        trainer.args.process_index,
        f"{trainer.unwrapped.num_parameters():,} parameters ({trainer.telemetry.variant}), "
        f"{plan.max_steps:,} steps of {config.run.tokens_per_batch:,} tokens = "
        f"{plan.epochs_at(plan.max_steps):.2f} epochs, "
        f"{plan.accumulation} micro-batches of {plan.micro_batch} windows on {plan.world_size} "
        f"process(es){_shared(config, trainer)}, {trainer.args.device}"
        + (f"; resumed after step {resumed_step}" if resumed_step else ""),
    )
    if shards(config.parallel) and plan.world_size == 1:
        say(0, "parallel.strategy=fsdp2: one process has nothing to share; more can go on")
    for note in notes(trainer.unwrapped, config.optim, trainer.schedule_steps, plan.max_steps):
        say(trainer.args.process_index, note)


def _shared(config: TrainConfig, trainer: ReuseTrainer) -> str:
    """How several processes hold the model, in words."""
    if trainer.plan.world_size == 1:
        return ""
    if not shards(config.parallel):
        return " that hold all weights (ddp)"
    return f" that hold {size_text(local_bytes(trainer.unwrapped))} of weights each (fsdp2)"
