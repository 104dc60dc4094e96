"""`versatileffn train`: a YAML file in, a trained model out."""

import os
from pathlib import Path
from typing import Annotated

import typer


def _print_reference(wanted: bool) -> None:
    if wanted:
        from versatileffn.training.reference import reference

        typer.echo(reference())
        raise typer.Exit


def train_command(
    config: Annotated[
        Path, typer.Argument(help="YAML file; see configs/ and --help-config.", show_default=False)
    ],
    set_: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="SECTION.KEY=VALUE", help="Override one value; repeatable."),
    ] = None,
    help_config: Annotated[
        bool,
        typer.Option(
            "--help-config",
            help="Describe every key of the YAML file, and exit.",
            is_eager=True,
            callback=_print_reference,
        ),
    ] = False,
) -> None:
    """Train a model, or continue the unfinished run in its folder.

    Ctrl-C, SIGTERM, SIGHUP and SIGUSR1 let it finish its step and save it; the same command goes
    on. Run it under `torchrun --nproc_per_node N -m versatileffn train ...` for N processes.
    """
    from versatileffn.training.config import load_config
    from versatileffn.training.run import train

    settings = load_config(config, set_ or [])
    run = train(settings)
    if settings.eval is not None and int(os.environ.get("RANK", 0)) == 0:
        from versatileffn.analysis.curves import draw_curves
        from versatileffn.evaluation.tasks.catalogue import PAPER8

        titles = {task.label: task.title for task in PAPER8}
        for path in draw_curves({run.name: run}, run / "curves", titles).values():
            typer.echo(f"curves: {path}")
