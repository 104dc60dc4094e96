"""`versatileffn reproduce`: an experiment at a chosen scale, down to a report."""

import dataclasses
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
            "makes the whole second pass, about twice as long; `0.1m` and `0.3m` take hours: "
            "parameters outside the embeddings, each with 20 tokens to learn from; `small` wants a "
            "GPU. `354m`, `720m` and `1.21b`, the paper's, print the commands and what they cost. "
            "Of the task `depth`: `tiny` is the whole experiment, `confirm` asks again on other "
            "seeds, `options` has an arm for each training option, `text`, `facts` and `unseen` "
            "change the questions, `demo` has three arms."
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
    table: Annotated[
        str,
        typer.Option(
            help="What is compared: `demo`; `1`, `3`, `4`, `5` or `figure-3` of the paper; "
            "`reuse`, which asks whether reuse pays; or `budgets`, what fewer loops cost at "
            "inference."
        ),
    ] = "demo",
    arms: Annotated[
        str | None,
        typer.Option(
            help="What the base is continued as, separated by commas (default: the paper's); `all` "
            "adds `mor`, Mixture-of-Recursions' token choice. The dense control is always one. Of "
            "the task `depth`: what is trained; `all` adds controls.",
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
    workers: Annotated[
        int,
        typer.Option(
            min=1,
            help="Processes that share the work, each with one CPU thread; not for scales that "
            "want a GPU.",
        ),
    ] = 1,
) -> None:
    """Train the paper's models and baselines side by side, measure them, write a report."""
    chosen_arms = None if arms is None else arms.split(",")
    if task == "depth":
        if tokens is not None or corpus is not None:
            raise ConfigError("the task `depth` makes its own tokens: leave out tokens and corpus")
        if table != "demo" or tasks is not None or only_finished or accept_sources:
            raise ConfigError(
                "table, tasks, only-finished and accept-sources are of the task `language`: leave "
                "them out"
            )
        _report(*_depth(scale, chosen_arms, out, seeds, workers))
        return
    if task != "language":
        raise ConfigError(f"task={task!r} is unknown: choose language or depth")
    from versatileffn.reproduce.launch import launch
    from versatileffn.reproduce.protocol import LAUNCHED, protocol
    from versatileffn.reproduce.run import reproduce

    chosen = protocol(scale, chosen_arms, table)
    if scale in LAUNCHED:
        for line in launch(chosen):
            typer.echo(line)
        return
    chosen = dataclasses.replace(chosen, tasks=tasks, tasks_limit=tasks_limit)
    folder = out if out is not None else Path("runs") / chosen.name
    command, accepted = command_line(), accept_sources or ()
    _report(
        folder,
        reproduce(chosen, folder, seeds, tokens, corpus, command, accepted, only_finished, workers),
    )


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
