"""`versatileffn reproduce`: the paper's protocol at a chosen scale, down to a report."""

import dataclasses
from pathlib import Path
from typing import Annotated

import typer

from versatileffn.cli.record import command_line


def reproduce_command(
    scale: Annotated[
        str,
        typer.Option(
            help="Size of the experiment: `tiny` takes minutes on two CPU cores; `tiny-epoch` "
            "makes the whole second pass, about twice as long; `0.1m` and `0.3m` take hours: "
            "parameters outside the embeddings, each with 20 tokens to learn from; `small` wants a "
            "GPU. `354m`, `720m` and `1.21b`, the paper's, print the commands and what they cost."
        ),
    ] = "tiny",
    out: Annotated[
        Path | None,
        typer.Option(
            help="Folder for everything (default: runs/SCALE). An earlier run in it is "
            "continued: finished stages are skipped."
        ),
    ] = None,
    seeds: Annotated[
        int, typer.Option(min=1, help="Repetitions; two or more give intervals in the report.")
    ] = 1,
    table: Annotated[
        str,
        typer.Option(
            help="What is compared: `demo`; `1`, `3`, `4`, `5` or `figure-3` of the paper; or "
            "`language`, which asks whether reuse pays."
        ),
    ] = "demo",
    arms: Annotated[
        str | None,
        typer.Option(
            help="What the base is continued as, separated by commas (default: the paper's); `all` "
            "adds `mor`, Mixture-of-Recursions' token choice. The dense control is always one.",
        ),
    ] = None,
    tokens: Annotated[
        Path | None,
        typer.Option(help="Token folder of `versatileffn tokenize`, instead of making one."),
    ] = None,
    corpus: Annotated[
        str | None,
        typer.Option(
            help="Text to tokenize: what `versatileffn tokenize` takes (default: the "
            "Python standard library's own sources)."
        ),
    ] = None,
    tasks: Annotated[
        str | None,
        typer.Option(
            help="Score every model on these tasks, too: `paper8`, or labels separated by commas."
        ),
    ] = None,
    tasks_limit: Annotated[
        int | None, typer.Option(min=1, help="Only the first so many items of each task.")
    ] = None,
    only_finished: Annotated[
        bool,
        typer.Option(
            "--only-finished", help="Train nothing: report what is there, and what isn't."
        ),
    ] = False,
    accept_sources: Annotated[
        list[str] | None,
        typer.Option(
            help="`source_sha256` of another version of this package, whose finished stages are "
            "taken as they are. May be repeated."
        ),
    ] = None,
) -> None:
    """Train the paper's models and baselines from one base, measure them, write a report."""
    from versatileffn.reproduce.launch import launch
    from versatileffn.reproduce.protocol import LAUNCHED, protocol
    from versatileffn.reproduce.run import reproduce

    chosen = protocol(scale, None if arms is None else arms.split(","), table)
    if scale in LAUNCHED:
        for line in launch(chosen):
            typer.echo(line)
        return
    chosen = dataclasses.replace(chosen, tasks=tasks, tasks_limit=tasks_limit)
    name = scale if table == "demo" else f"{table}-{scale}"
    folder = out if out is not None else Path("runs") / name
    report = reproduce(
        chosen,
        folder,
        seeds,
        tokens,
        corpus,
        command_line(),
        accept_sources or (),
        only_finished,
    )
    typer.echo(f"\nresults: {folder / 'results.json'}\nreport:  {report}")
