"""`versatileffn flops`: what an architecture costs in each of its forms."""

import dataclasses
import difflib
from collections.abc import Iterator
from functools import partial
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from versatileffn.cli.record import JsonOption, OverwriteOption, RecordFile

if TYPE_CHECKING:
    from transformers import LlamaConfig

    from versatileffn.analysis.efficiency import EfficiencyRow
    from versatileffn.analysis.reuse import Reuse


def flops_command(
    model: Annotated[
        str,
        typer.Argument(
            help="354m, 720m or 1.21b (the paper's), or a checkpoint: a folder, hub id, .gguf."
        ),
    ],
    mean_loops: Annotated[
        float | None,
        typer.Option(help="N_mean, mean loops per token, for the VersatileFFN rows."),
    ] = None,
    share_below_max: Annotated[
        float | None,
        typer.Option(help="P, share of tokens that leave before the last loop, likewise."),
    ] = None,
    measure: Annotated[
        str | None,
        typer.Option(
            help="Measure both and the executed FLOPs with the checkpoint: a task's prompts "
            "(arc_challenge is the paper's), a token folder's held-out split, or a text.",
            show_default=False,
        ),
    ] = None,
    limit: Annotated[
        int | None, typer.Option(min=1, help="Measure on the first so many items or windows.")
    ] = None,
    memory: Annotated[
        bool, typer.Option("--memory/--no-memory", help="Measure activation memory on one layer.")
    ] = True,
    json: JsonOption = None,
    overwrite: OverwriteOption = False,
) -> None:
    """Parameters, FFN FLOPs per token and activation memory: Base, k-Loop, MoE, VersatileFFN."""
    from versatileffn.analysis.efficiency import efficiency_table
    from versatileffn.analysis.presets import WIDTHS, preset
    from versatileffn.errors import ConfigError
    from versatileffn.evaluation.tasks.loading import model_sha256
    from versatileffn.models.checkpoint import read_config
    from versatileffn.provenance import versions
    from versatileffn.training.run import device_name

    if share_below_max is not None and mean_loops is None:
        raise ConfigError("--share-below-max says nothing without --mean-loops: give both")
    out = RecordFile(json, "flops", [model, measure], overwrite) if json else None
    is_preset = model.lower() in WIDTHS and not Path(model).is_dir()
    meant = difflib.get_close_matches(model.lower(), WIDTHS, n=1, cutoff=0.7)
    if meant and not is_preset and not Path(model).exists():
        raise ConfigError(f"there is no preset {model!r} here: did you mean {meant[0]!r}?")
    reuse, loaded = None, None
    if measure is not None:
        if is_preset:
            raise ConfigError(f"{model} has no weights to measure with: give a checkpoint")
        if mean_loops is not None or share_below_max is not None:
            raise ConfigError("give either --measure, or --mean-loops and --share-below-max")
        reuse, loaded = _measure(model, measure, limit)
        mean_loops, share_below_max = reuse.mean_loops, reuse.share_below_max
    config = preset(model.lower()) if is_preset else read_config(model)
    executed = None if reuse is None else reuse.executed_flops
    rows = efficiency_table(config, mean_loops, share_below_max, executed, memory)
    _print(model, config, rows, measure, reuse, mean_loops, share_below_max)
    if out is not None:
        record = {
            "versions": versions("torch", "transformers"),
            "device": None if loaded is None else device_name(loaded.device),
            "model": model,
            "model_sha256": None if loaded is None else model_sha256(loaded),
            "mean_loops": mean_loops,
            "share_below_max": share_below_max,
            "measured_on": measure,
            "limit": limit,
            "reuse": None if reuse is None else dataclasses.asdict(reuse),
            "rows": [dataclasses.asdict(row) for row in rows],
        }
        out.write(record)


def _measure(model: str, source: str, limit: int | None) -> tuple["Reuse", Any]:
    """What the checkpoint does on a task's prompts, on tokens, or on text; and its model."""
    import torch
    from transformers import AutoModelForCausalLM

    from versatileffn.analysis.reuse import measure_reuse, unpadded_batches
    from versatileffn.cli.device import choose_device
    from versatileffn.models.checkpoint import load_checkpoint, read_config

    config = read_config(model)
    loaded = load_checkpoint(AutoModelForCausalLM, model, config, dtype=torch.float32)
    loaded = loaded.to(choose_device(None))
    sequences = _sequences(model, loaded, source, limit)
    with loaded.register_forward_hook(partial(_check_finite, model)):
        return measure_reuse(loaded, list(unpadded_batches(sequences))), loaded


def _check_finite(source: str, _: Any, __: Any, out: Any) -> None:
    """Raise CheckpointError where a model computes no numbers: its loops would mean nothing."""
    from versatileffn.errors import CheckpointError

    if not out.logits.isfinite().all():
        raise CheckpointError(
            f"{source} gives logits that are NaN or infinite: its weights or its config.json are "
            "damaged, or it diverged"
        )


def _sequences(model: str, loaded: Any, source: str, limit: int | None) -> list[list[int]]:
    """Token sequences to measure on."""
    from versatileffn.data.meta import META_FILE
    from versatileffn.data.packed import PackedDataset
    from versatileffn.errors import DataError
    from versatileffn.models.checkpoint import quiet_transformers

    window = min(loaded.config.max_position_embeddings, 2048)
    if (Path(source) / META_FILE).is_file():
        dataset = PackedDataset(source, "val", window)
        count = min(limit or len(dataset), len(dataset))
        found = [dataset[index]["input_ids"].tolist() for index in range(count)]
    elif Path(source).exists():
        with quiet_transformers():
            found = list(islice(_text_windows(model, source, window), limit))
    else:
        found = _task_prompts(model, loaded, source, limit)
    if max((max(ids) for ids in found if ids), default=0) >= loaded.config.vocab_size:
        raise DataError(f"{source} has tokens outside the vocabulary of {model}: measure on what "
                        "its own tokenizer makes")  # fmt: skip
    return found


def _text_windows(model: str, source: str, window: int) -> Iterator[list[int]]:
    """The windows of each document, read as far as they are asked for."""
    from versatileffn.data.corpus import find_corpus
    from versatileffn.evaluation.tasks.tokenizer import RequestTokenizer

    words = RequestTokenizer(_tokenizer(model))
    for piece in find_corpus(source).pieces():
        for document in piece:
            ids = words.stream(document)
            while found := list(islice(ids, window)):
                yield found


def _task_prompts(model: str, loaded: Any, name: str, limit: int | None) -> list[list[int]]:
    """Every choice of a task's items, as the model reads it to score it."""
    from versatileffn.evaluation.tasks.catalogue import find_tasks
    from versatileffn.evaluation.tasks.loading import context_length
    from versatileffn.evaluation.tasks.requests import build_items
    from versatileffn.evaluation.tasks.tokenizer import RequestTokenizer

    words = RequestTokenizer(_tokenizer(model))
    return [
        list(request.query)
        for task in find_tasks(name)
        for item in build_items(task, words, context_length(loaded), limit)
        for request in item.requests
    ]


def _tokenizer(model: str) -> Any:
    from versatileffn.errors import DataError
    from versatileffn.models.tokenizer import load_own_tokenizer

    try:
        return load_own_tokenizer(model)
    except DataError as error:
        raise DataError(
            f"{error}: copy the one it was trained with into its folder, or measure on a token "
            "folder"
        ) from None


def _print(
    model: str,
    config: "LlamaConfig",
    rows: "list[EfficiencyRow]",
    measure: str | None,
    reuse: "Reuse | None",
    mean_loops: float | None,
    share_below_max: float | None,
) -> None:
    from rich import box
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    unit, divisor = "GFLOPs", 1e9
    if (rows[0].flops_ours or 0) < 1e8:
        unit, divisor = "MFLOPs", 1e6
    sizes = (
        f"D {config.hidden_size}, F {config.intermediate_size}, {config.num_hidden_layers} layers"
    )
    table = Table(title=f"{escape(model)}: {sizes}; FFN {unit} per token", box=box.SIMPLE_HEAD)
    table.add_column("form")
    shown = [("parameters", [f"{row.parameters:,}" for row in rows])]
    for title, values, scale, digits in (
        ("paper", [row.flops_paper for row in rows], divisor, 2),
        ("ours", [row.flops_ours for row in rows], divisor, 2),
        ("executed", [row.flops_executed for row in rows], divisor, 2),
        ("bf16 KiB", [row.activation_bytes_bf16 for row in rows], 1024, 0),
        ("fp32 KiB", [row.activation_bytes for row in rows], 1024, 0),
    ):
        if title in ("paper", "ours") or any(value is not None for value in values):
            shown.append((title, [_number(value, scale, digits) for value in values]))
    for title, _ in shown:
        table.add_column(title, justify="right", no_wrap=True)
    for index, row in enumerate(rows):
        name = f"[bold]{row.name}[/bold]" if row.own else row.name
        table.add_row(name, *(cells[index] for _, cells in shown))
    console = Console()
    console.print(table)
    notes = ["FLOPs: matrix products of all FFNs, 2 per multiply-add, without routers and loop "
             "predictors."]  # fmt: skip
    if rows[0].activation_bytes is not None:
        loops = "max" if mean_loops is None else f"{mean_loops:.4g}"
        notes.append("KiB: activations that all FFNs keep for the backward pass, per token, under "
                     "bfloat16 autocast and in float32, measured on one layer; VersatileFFN's "
                     f"at {loops} loops.")  # fmt: skip
    if reuse is not None:
        notes.append(f"Measured on {escape(str(measure))}, {reuse.tokens:,} tokens.")
    if mean_loops is not None:
        share = "" if share_below_max is None else f", P = {share_below_max:.4f}"
        notes.append(f"N_mean = {mean_loops:.4f}{share}.")
    elif measure is not None:
        notes.append("This checkpoint decides no loops, so that VersatileFFN's FLOPs stay open.")
    elif any(row.flops_ours is None for row in rows):
        notes.append("VersatileFFN's FLOPs need --mean-loops and --share-below-max, or --measure "
                     "with a checkpoint.")  # fmt: skip
    console.print(" ".join(notes), soft_wrap=True)


def _number(value: float | None, divisor: float, digits: int) -> str:
    return "–" if value is None else f"{value / divisor:,.{digits}f}"
