"""`versatileffn train`: a YAML file in, a trained model out."""

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

    train(load_config(config, set_ or []))
