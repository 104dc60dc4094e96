"""`versatileffn bench`: time, memory and FLOPs beside the alternatives, and the goals."""

import os
import shlex
import sys
from pathlib import Path
from typing import Annotated

import typer

TRAINED = Path("results/tiny-3-seeds/results.json")


def bench_command(
    out: Annotated[
        Path | None,
        typer.Option(
            help="JSON file to write or to continue; the plot is put beside it. "
            "[default: benchmarks/results/DEVICE.json, with --quick runs/bench-quick.json]"
        ),
    ] = None,
    quick: Annotated[
        bool, typer.Option("--quick", help="Tiny sizes: whether it works, not how fast it is.")
    ] = False,
    only: Annotated[
        list[str] | None,
        typer.Option(
            metavar="CASE", help="Cases whose names begin so, as `decode/d512`; repeatable."
        ),
    ] = None,
    threads: Annotated[
        int | None, typer.Option(min=1, help="Threads of torch.  [default: all cores]")
    ] = None,
    device: Annotated[str, typer.Option(help="cpu or cuda.")] = "cpu",
    seed: Annotated[int, typer.Option(help="Of weights, hidden states, order of loops.")] = 0,
    trained: Annotated[
        Path | None,
        typer.Option(
            help="Loop distribution of trained models: results.json of `versatileffn reproduce`."
            f"  [default: {TRAINED}, if it is there]"
        ),
    ] = None,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Forget results in OUT with other settings.")
    ] = False,
    render: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Measure nothing; show the results in this JSON file."),
    ] = None,
    docs: Annotated[
        Path | None,
        typer.Option(help="Also write the tables into this Markdown file, between its markers."),
    ] = None,
) -> None:
    """Measure ours against the alternatives, alternating in one process; print the goals.

    Results are written after each case. The same command continues a run that was stopped.
    """
    from rich.console import Console

    from versatileffn.bench.distributions import SHARES, trained_shares
    from versatileffn.bench.plot import draw
    from versatileffn.bench.report import goals_table, write_into
    from versatileffn.bench.results import Results
    from versatileffn.bench.run import bench
    from versatileffn.bench.suite import TRAINED as NAME

    if render is None:
        shares = dict(SHARES)
        if trained is not None or TRAINED.is_file():
            shares[NAME] = trained_shares(trained or TRAINED)
        if out is None:
            results_folder = Path("benchmarks/results")
            name = device.replace(":", "-")
            out = Path("runs/bench-quick.json") if quick else results_folder / f"{name}.json"
        results = bench(
            out,
            shares,
            quick=quick,
            only=only or (),
            threads=threads or os.cpu_count() or 1,
            device=device,
            seed=seed,
            overwrite=overwrite,
            command=shlex.join(["versatileffn", *sys.argv[1:]]),
        )
        picture = draw(results, out.with_suffix(".png"))
    else:
        out, results, picture = render, Results.read(render), None
    Console().print(goals_table(results))
    if docs is not None:
        write_into(docs, results, out)
        typer.echo(f"written into {docs}")
    typer.echo(f"results: {out}" + (f"\nplot:    {picture}" if picture else ""))
