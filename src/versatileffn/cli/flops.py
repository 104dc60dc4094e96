"""`versatileffn flops`: what an architecture costs in each of its forms."""

import dataclasses
import difflib
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from versatileffn.cli.record import JsonOption, OverwriteOption, RecordFile
from versatileffn.cli.table import print_table

if TYPE_CHECKING:
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
    from versatileffn.provenance import device_name

    if share_below_max is not None and mean_loops is None:
        raise ConfigError("--share-below-max says nothing without --mean-loops: give both")
    out = RecordFile(json, "flops", [model, measure], overwrite)
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
    _print(f"{model}: D {config.hidden_size}, F {config.intermediate_size}, "
           f"{config.num_hidden_layers} layers", rows)  # fmt: skip
    for note in _notes(rows, measure, reuse, mean_loops, share_below_max):
        typer.echo(note)
    out.write(
        {
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
    )


def _measure(name: str, source: str, limit: int | None) -> tuple["Reuse", Any]:
    """What the checkpoint does on some text, and its model."""
    import torch
    from transformers import AutoModelForCausalLM

    from versatileffn.analysis.reuse import measure_reuse, unpadded_batches
    from versatileffn.analysis.texts import token_sequences
    from versatileffn.cli.options import choose_device
    from versatileffn.models.checkpoint import load_checkpoint, read_config

    model = load_checkpoint(AutoModelForCausalLM, name, read_config(name), dtype=torch.float32)
    model = model.to(choose_device(None))
    sequences = token_sequences(name, model, source, limit)
    return measure_reuse(model, list(unpadded_batches(sequences))), model


COLUMNS = {
    "paper": "flops_paper",
    "ours": "flops_ours",
    "executed": "flops_executed",
    "bf16 KiB": "activation_bytes_bf16",
    "fp32 KiB": "activation_bytes",
}


def _print(title: str, rows: "list[EfficiencyRow]") -> None:
    """The table; a column of measurements that weren't made is left out."""
    large = (rows[0].flops_ours or 0) >= 1e8
    unit, divisor = ("GFLOPs", 1e9) if large else ("MFLOPs", 1e6)
    shown = {"form": [f"[bold]{row.name}[/bold]" if row.own else row.name for row in rows]}
    shown["parameters"] = [f"{row.parameters:,}" for row in rows]
    for heading, field in COLUMNS.items():
        values = [getattr(row, field) for row in rows]
        if heading in ("paper", "ours") or any(value is not None for value in values):
            scale, digits = (1024, 0) if "bytes" in field else (divisor, 2)
            shown[heading] = ["–" if v is None else f"{v / scale:,.{digits}f}" for v in values]
    print_table(f"{title}; FFN {unit} per token", shown)


def _notes(
    rows: "list[EfficiencyRow]",
    measure: str | None,
    reuse: "Reuse | None",
    mean_loops: float | None,
    share_below_max: float | None,
) -> Iterator[str]:
    """What the numbers count, and on what they were measured."""
    yield (
        "FLOPs: matrix products of all FFNs, 2 per multiply-add, without routers and loop "
        "predictors."
    )
    if rows[0].activation_bytes is not None:
        loops = "max" if mean_loops is None else f"{mean_loops:.4g}"
        yield (
            "KiB: activations that all FFNs keep for the backward pass, per token, under bfloat16 "
            f"autocast and in float32, measured on one layer; VersatileFFN's at {loops} loops."
        )
    if reuse is not None:
        yield f"Measured on {measure}, {reuse.tokens:,} tokens."
    if mean_loops is not None:
        share = "" if share_below_max is None else f", P = {share_below_max:.4f}"
        yield f"N_mean = {mean_loops:.4f}{share}."
    elif measure is not None:
        yield "This checkpoint decides no loops, so that VersatileFFN's FLOPs stay open."
    elif any(row.flops_ours is None for row in rows):
        yield (
            "VersatileFFN's FLOPs need --mean-loops and --share-below-max, or --measure with a "
            "checkpoint."
        )
