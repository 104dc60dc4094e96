"""`versatileffn reproduce`: the paper's protocol at a chosen scale, down to a report."""

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
            "parameters outside the embeddings, each with 20 tokens to learn from."
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
        typer.Option(help="What is compared: `demo`, or `language`, also from scratch."),
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
    from versatileffn.reproduce.protocol import protocol
    from versatileffn.reproduce.run import reproduce

    chosen = protocol(scale, None if arms is None else arms.split(","), table)
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
