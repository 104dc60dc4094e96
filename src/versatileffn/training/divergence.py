"""When training has diverged: numbers that aren't finite end it, and are never saved."""

import math
from pathlib import Path
from typing import Any

import torch
from torch import nn

from versatileffn.errors import DivergedError
from versatileffn.training.sharding import whole
from versatileffn.workspace.durable import write_json
from versatileffn.workspace.manifest import read_record

WATCHED = {"loss": "the loss", "grad_norm": "the gradient's norm", "eval_loss": "the held-out loss"}


def check_logs(logs: dict[str, Any], step: int) -> None:
    """Look at what is about to be logged.

    Raises:
        DivergedError: loss, gradient norm or held-out loss isn't finite.
    """
    for key, what in WATCHED.items():
        if key in logs and not math.isfinite(logs[key]):
            raise DivergedError(step, f"{what} is {logs[key]}")


@torch.no_grad()
def check_weights(model: nn.Module, step: int) -> None:
    """Look at the weights, which are about to be saved.

    Raises:
        DivergedError: some aren't finite, or so large that their squares aren't.
    """
    norms = torch.stack([whole(parameter.float().norm()) for parameter in model.parameters()])
    broken = int((~norms.isfinite()).sum())
    if broken:
        raise DivergedError(step, f"the norms of {broken} of {len(norms)} weights aren't finite")


def record_divergence(path: Path, error: DivergedError) -> None:
    """Note in the run's folder that it diverged, so that starting it again says so."""
    write_json(path, {"step": error.step, "reason": error.reason})


def check_not_diverged(path: Path, checkpoint: Path | None) -> None:
    """Refuse to go on with a run that diverged: it would do so again.

    Args:
        path: where `record_divergence` notes it.
        checkpoint: the run's newest one.

    Raises:
        DivergedError: it did; with what can be done.
    """
    if not path.is_file():
        return
    record = read_record(path) or {}
    kept = f"its last good checkpoint is {checkpoint}" if checkpoint else "it has no checkpoint"
    raise DivergedError(
        record.get("step", "?"),
        f"{record.get('reason', 'unknown')}; {kept}",
        f"lower optim.learning_rate and choose another run.output_dir, or delete {path} to try the "
        "same again",
    )
