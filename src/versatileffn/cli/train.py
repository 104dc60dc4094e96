"""`versatileffn train`: a YAML file in, a trained model out."""

import os
from pathlib import Path
from typing import Annotated

import typer


def train_command(
    config: Annotated[Path, typer.Argument(help="YAML file; see configs/ for examples.")],
    set_: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="SECTION.KEY=VALUE", help="Override one value; repeatable."),
    ] = None,
) -> None:
    """Train a model, or continue the unfinished run in its folder.

    Run it under `torchrun --nproc_per_node N -m versatileffn.cli.main train ...` for N processes.
    """
    from versatileffn.training.config import load_config
    from versatileffn.training.run import train

    settings = load_config(config, set_ or [])
    if settings.eval is None:
        train(settings)
        return
    from versatileffn.analysis.curves import draw_curves
    from versatileffn.evaluation.task_scores import TaskScores
    from versatileffn.evaluation.tasks.catalogue import PAPER8

    run = train(settings, TaskScores(settings.eval.tasks, settings.eval.tasks_limit))
    if int(os.environ.get("RANK", 0)) == 0:
        titles = {task.label: task.title for task in PAPER8}
        for path in draw_curves({run.name: run}, run / "curves", titles).values():
            typer.echo(f"curves: {path}")
