"""`versatileffn reproduce`: an experiment at a chosen scale, down to a report."""

from pathlib import Path
from typing import Annotated

import typer

from versatileffn.cli.record import command_line
from versatileffn.errors import ConfigError


def reproduce_command(
    task: Annotated[
        str,
        typer.Option(
            help="`language` is the paper's protocol; `depth` asks for k steps of a cellular "
            "automaton: does a controller learn how often to loop?"
        ),
    ] = "language",
    scale: Annotated[
        str,
        typer.Option(
            help="Size of the experiment: `tiny` takes minutes on two CPU cores; `tiny-epoch` "
            "makes the whole second pass, about twice as long. Of the task `depth`: `tiny` is the "
            "whole experiment, `confirm` asks again on other seeds, `demo` has three arms."
        ),
    ] = "tiny",
    out: Annotated[
        Path | None,
        typer.Option(
            help="Folder for everything (default: runs/SCALE, or runs/depth-SCALE). An earlier run "
            "in it is continued: finished stages are skipped."
        ),
    ] = None,
    seeds: Annotated[
        int, typer.Option(min=1, help="Repetitions; two or more give intervals in the report.")
    ] = 1,
    arms: Annotated[
        str | None,
        typer.Option(
            help="What the base is continued as, separated by commas (default: the paper's); `all` "
            "adds `mor`, Mixture-of-Recursions' token choice. The dense control is always one. Of "
            "the task `depth`: what is trained; `all` adds controls and options.",
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
    workers: Annotated[
        int,
        typer.Option(min=1, help="Of the task `depth`: processes, each with one CPU thread."),
    ] = 1,
) -> None:
    """Train the paper's models and baselines side by side, measure them, write a report."""
    chosen_arms = None if arms is None else arms.split(",")
    if task == "depth":
        if tokens is not None or corpus is not None:
            raise ConfigError("the task `depth` makes its own tokens: leave out tokens and corpus")
        _report(*_depth(scale, chosen_arms, out, seeds, workers))
        return
    if task != "language":
        raise ConfigError(f"task={task!r} is unknown: choose language or depth")
    if workers > 1:
        raise ConfigError("the task `language` runs in one process: leave out workers")
    from versatileffn.reproduce.protocol import protocol
    from versatileffn.reproduce.run import reproduce

    folder = out if out is not None else Path("runs") / scale
    chosen = protocol(scale, chosen_arms)
    _report(folder, reproduce(chosen, folder, seeds, tokens, corpus, command_line()))


def _depth(
    scale: str, arms: list[str] | None, out: Path | None, seeds: int, workers: int
) -> tuple[Path, Path]:
    """Run the depth experiment; its folder and report."""
    from versatileffn.reproduce.depth.protocol import depth_protocol
    from versatileffn.reproduce.depth.run import reproduce_depth

    folder = out if out is not None else Path("runs") / f"depth-{scale}"
    chosen = depth_protocol(scale, arms)
    return folder, reproduce_depth(chosen, folder, seeds, workers, command_line())


def _report(folder: Path, report: Path) -> None:
    typer.echo(f"\nresults: {folder / 'results.json'}\nreport:  {report}")
