"""`versatileffn evaluate`: a model in, its scores on the paper's tasks out."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import typer

from versatileffn.cli.options import Bf16Option, DeviceOption, choose_device, precision
from versatileffn.cli.record import OverwriteOption, RecordFile, command_line
from versatileffn.cli.table import print_table

DEFAULT_OUT = Path("runs") / "evaluate"
COMPARISON_FILE = "comparison.json"
SECONDS_BETWEEN_LINES = 10.0
IDENTITY = (
    "model", "model_class", "model_sha256", "tokenizer_sha256", "dtype", "device", "onednn",
    "versions",
)  # fmt: skip


def evaluate_command(
    models: Annotated[
        list[str],
        typer.Argument(
            metavar="MODEL [MODEL_B]",
            help="Folder, hub id or .gguf file of a causal language model, dense or ours.",
        ),
    ],
    tasks: Annotated[
        str, typer.Option(help="`paper8`, or labels separated by commas.")
    ] = "paper8",
    compare: Annotated[
        bool, typer.Option("--compare", help="The paired difference MODEL_B minus MODEL.")
    ] = False,
    limit: Annotated[
        int | None, typer.Option(min=1, help="Only the first so many items of each task.")
    ] = None,
    bf16: Bf16Option = False,
    batch_tokens: Annotated[
        int | None,
        typer.Option(min=1, help="Tokens in a forward pass.  [default: 2048 on a CPU, else more]"),
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option(
            help="Folder for results and records (default: runs/evaluate/NAME). An evaluation "
            "of the same model in it is continued."
        ),
    ] = None,
    tokenizer: Annotated[
        str | None,
        typer.Option(help="`olmo`, a tokenizer.json, a folder or a hub id, if not the model's."),
    ] = None,
    device: DeviceOption = None,
    onednn: Annotated[
        bool,
        typer.Option(
            "--onednn",
            help="Compute float32 products on a CPU by oneDNN: the faster library on some (AMD's).",
        ),
    ] = False,
    overwrite: OverwriteOption = False,
) -> None:  # fmt: skip
    """Score models on the paper's eight zero-shot tasks, offline."""
    import versatileffn  # noqa: F401 - registers our models with the Auto classes
    from versatileffn.errors import ConfigError
    from versatileffn.evaluation.tasks.catalogue import find_tasks
    from versatileffn.evaluation.tasks.loading import load_subject
    from versatileffn.evaluation.tasks.records import check_own
    from versatileffn.evaluation.tasks.run import evaluate
    from versatileffn.evaluation.tasks.scores import compare_records
    from versatileffn.models.checkpoint import read_any_config

    chosen = find_tasks(tasks)
    if compare and len(models) != 2:
        raise ConfigError(f"--compare needs two models, {len(models)} given: name both")
    folders = _folders(models, out)
    name = f"{folders[-1].name}-against-{folders[0].name}"
    path = (out or DEFAULT_OUT / name) / COMPARISON_FILE
    file = RecordFile(path if compare else None, "evaluate", models, overwrite)
    place = choose_device(device)
    for source in models:  # before hours go into the first one
        read_any_config(source)
    for folder in folders:
        check_own(folder)
    evaluations = []
    for source, folder in zip(models, folders, strict=True):
        typer.echo(f"{source}")
        evaluation = evaluate(
            load_subject(source, precision(bf16), place, tokenizer),
            chosen,
            limit=limit,
            batch_tokens=batch_tokens,
            out=folder,
            command=command_line(),
            progress=_watched(),
            onednn=onednn,
            tell=lambda text: typer.echo(f"note: {text}", err=True),
        )
        _print_scores(evaluation.results)
        typer.echo(f"results: {folder / 'results.json'}\n")
        evaluations.append(evaluation)
    if not compare:
        return
    first, second = evaluations
    comparison = {
        "format": 1,
        "first": _identity(first.results),
        "second": _identity(second.results),
        "conventions": first.results["conventions"],
        "limit": limit,
        **compare_records(chosen, first.records, second.records),
    }
    file.write(comparison)
    _print_comparison(comparison, models)
    typer.echo(f"results: {path}")


def _watched() -> Callable[[int, int], None]:
    """Says now and then how far it is, where a person watches or a log is kept."""
    from tqdm import tqdm

    pause = SECONDS_BETWEEN_LINES
    bar = tqdm(unit=" requests", mininterval=pause, delay=pause, leave=False)

    def show(done: int, wanted: int) -> None:
        bar.total = wanted
        bar.update(done - bar.n)
        if done == wanted:
            bar.close()

    return show


def _folders(models: list[str], out: Path | None) -> list[Path]:
    """Where each model's results go: OUT for one model, a folder below it for each of several."""
    if len(models) == 1 and out is not None:
        return [out]
    names: list[str] = []
    for source in models:
        name = _name(source)
        names.append(name if name not in names else f"{name}-{len(names) + 1}")
    return [(out or DEFAULT_OUT) / name for name in names]


def _name(source: str) -> str:
    """A folder's name from a path or an id: its last part that says something."""
    place = Path(os.path.abspath(os.path.expanduser(source)))
    parts = [part for part in place.parts if part not in ("/", "model")]
    last = parts[-1] if parts else "model"
    return last.removesuffix(".gguf")


def _identity(results: dict[str, Any]) -> dict[str, Any]:
    return {name: results[name] for name in IDENTITY}


def _print_scores(results: dict[str, Any]) -> None:
    tasks = results["tasks"].values()
    every = [*tasks, {"metric": "", "items": "", **results["mean"]}]
    columns = {
        "": [*results["tasks"], "mean"],
        "metric": [row["metric"] for row in every],
        "items": [str(row["items"]) for row in every],
        "score, %": [_percent(row["paper"]) for row in every],
        "olmo-eval counts": [_percent(row["olmo_eval"]) for row in every],
    }
    print_table("", columns)
    if results["requests_cut"]:
        typer.echo(
            f"note: {results['requests_cut']} of {results['requests']} requests were longer than "
            f"the model's {results['context_length']} tokens and lost their beginning, "
            f"{results['continuations_cut']} of them a part of the answer"
        )
    if results["note"]:
        typer.echo(f"note: {results['note']}")
    rate = results["this_session"]["requests_per_second"]
    if rate:
        library = ", oneDNN" if results["onednn"] else ""
        typer.echo(f"{rate:.1f} requests/s ({results['scoring']}, {results['dtype']}{library})")


def _percent(found: dict[str, Any]) -> str:
    error = found["standard_error"]
    spread = "" if error is None else f" ± {100 * error:.2f}"
    return f"{100 * found['score']:.2f}{spread}"


def _print_comparison(comparison: dict[str, Any], models: list[str]) -> None:
    typer.echo(f"{models[1]} minus {models[0]}, points (95 % interval)")
    rows = {**comparison["tasks"], "mean": comparison["mean"]}
    columns = {
        "": list(rows),
        "score": [_points(row["paper"]) for row in rows.values()],
        "olmo-eval counts": [_points(row["olmo_eval"]) for row in rows.values()],
    }
    print_table("", columns)


def _points(found: dict[str, Any]) -> str:
    text = f"{100 * found['difference']:+.2f}"
    if found["interval_95"] is None:
        return text
    low, high = (100 * limit for limit in found["interval_95"])
    return f"{text} ({low:+.2f} to {high:+.2f})"
