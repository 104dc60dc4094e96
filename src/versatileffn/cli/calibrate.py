"""`versatileffn calibrate`: what a mean of loops costs, measured and kept with the checkpoint."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from versatileffn.cli.options import DeviceOption, choose_device, precision
from versatileffn.cli.record import JsonOption, OverwriteOption, RecordFile
from versatileffn.cli.verify import RECORDS

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

CONFIG = "config.json"


def calibrate_command(
    model: Annotated[
        Path, typer.Argument(help="Checkpoint: a folder. Its config.json keeps the curve.")
    ],
    text: Annotated[
        str,
        typer.Argument(
            help="Text that the model wasn't trained on: a file or folder that `tokenize` takes, "
            "a token folder's held-out split, or a task's prompts."
        ),
    ],
    points: Annotated[
        int, typer.Option(min=2, max=100, help="Penalties to measure, beside none.")
    ] = 9,
    limit: Annotated[
        int | None, typer.Option(min=1, help="Only the first so many windows, or items of a task.")
    ] = 64,
    clock: Annotated[
        float | None,
        typer.Option(
            min=0.0,
            metavar="SECONDS",
            help="Time reading and decoding under each budget, too, beside the same weights with "
            "each FFN once; so many seconds each, at least five rounds.",
        ),
    ] = None,
    device: DeviceOption = None,
    figure: Annotated[
        Path | None, typer.Option(help="Draw loss against executed FLOPs here, as SVG.")
    ] = None,
    json: JsonOption = None,
    overwrite: OverwriteOption = False,
) -> None:
    """Measure penalty, mean loops, loss and executed FLOPs; `mean_loops` budgets look them up.

    Beside it, what `max_loops` of 1, 2, … costs. Training changes both: calibrate again after it.
    """
    import torch
    from rich.console import Console

    from versatileffn.analysis.calibration import calibrate, draw_curve, measure_caps
    from versatileffn.analysis.dial_clock import clock_budgets
    from versatileffn.analysis.reuse import unpadded_batches
    from versatileffn.analysis.texts import token_sequences
    from versatileffn.budget import check_priced
    from versatileffn.errors import ConfigError
    from versatileffn.evaluation.tasks.loading import model_sha256
    from versatileffn.provenance import device_name
    from versatileffn.workspace.durable import check_file, write_bytes, writing

    if not (model / CONFIG).is_file():
        raise ConfigError(
            f"{model} is no folder with a {CONFIG}, where the curve is kept: download the "
            "checkpoint, or convert it, first"
        )
    out = RecordFile(json, "calibrate", [model, text], overwrite)
    if figure is not None:
        check_file(figure)
        if figure.exists() and not overwrite:
            raise ConfigError(f"{figure} already exists: choose another place, or pass --overwrite")
    name = str(model)
    loaded, dense = _load(name, clock is not None, choose_device(device))
    check_priced(loaded)
    batches = list(unpadded_batches(token_sequences(name, loaded, text, limit)))
    with Console(stderr=True).status("measuring") as status:
        curve = calibrate(
            loaded, batches, points,
            progress=lambda done, of: status.update(f"{done} of {of} points measured"),
        )  # fmt: skip
        keep(model, curve)
        caps = measure_caps(loaded, batches)
        timed: dict[str, Any] = {}
        if clock is not None:
            status.update("timing")
            timed = clock_budgets(loaded, dense, [*curve, *caps], batches[-1], clock)
    _print([*curve, *caps], timed)
    if figure is not None:
        with writing(figure):
            write_bytes(figure, draw_curve(curve, caps))
    out.write(
        {
            "device": device_name(loaded.device),
            "model": name,
            "model_sha256": model_sha256(loaded),
            "text": text,
            "limit": limit,
            "tokens": sum(ids.numel() for ids in batches),
            "curve": curve,
            "caps": caps,
            "clock": timed and {"threads": torch.get_num_threads(), **timed},
        }
    )


def _load(name: str, with_dense: bool, where: Any) -> tuple[Any, Any]:
    """The model and, if wanted, its dense twin."""
    from transformers import AutoModelForCausalLM

    from versatileffn.analysis.flops import ffn_of
    from versatileffn.analysis.twin import load_pair, read_pair
    from versatileffn.models.checkpoint import load_checkpoint, read_config

    dtype, config = precision(False), read_config(name)
    if with_dense and ffn_of(config).loops > 1:
        pair = load_pair(name, None, read_pair(name, None), dtype, where)
        return pair["reuse"], pair["dense"]
    loaded = load_checkpoint(AutoModelForCausalLM, name, config, dtype=dtype)
    return loaded.to(where), None


def keep(folder: Path, curve: "Sequence[dict[str, float]]") -> None:
    """Put a curve into a checkpoint's config, and the config's digest where digests are listed.

    The config is what `save_pretrained` and the hub carry along. Killed in between, the same
    command mends it.

    Raises:
        ConfigError: the folder can't be written.
        ResourceError: the disk is full.
    """
    from versatileffn.workspace.durable import write_json, writing
    from versatileffn.workspace.manifest import FILES, files_of, read_record, sha256

    changed = folder.resolve() / CONFIG
    with writing(changed):
        write_json(changed, {**(read_record(changed) or {}), "loop_curve": list(curve)})
        files = [changed]
        for place in (changed.parent, *changed.parent.parents):
            for record in (place / name for name in RECORDS if (place / name).is_file()):
                content: dict[str, Any] = read_record(record) or {}
                listed = files_of(content) or {}
                new = {file.relative_to(place).as_posix(): file for file in files}
                if listed.keys() & new.keys():
                    fresh = {n: sha256(new[n]) if n in new else d for n, d in listed.items()}
                    write_json(record, {**content, FILES: fresh})
                    files.append(record)


def _print(points: "Sequence[dict[str, float]]", timed: "Mapping[str, Any]") -> None:
    from versatileffn.analysis.dial_clock import budget_name
    from versatileffn.cli.table import print_table

    speeds = {
        work: [f"{found['of_dense'][budget_name(point)]['median']:.2f}" for point in points]
        for work, found in timed.items()
    }
    print_table(
        "Loops in the mean; executed FFN FLOPs of a token",
        {
            "budget": [_budget(point) for point in points],
            "loops": [f"{point['mean_loops']:.3f}" for point in points],
            "nats/token": [f"{point['nats_per_token']:.4f}" for point in points],
            "FFN MFLOPs": [f"{point['ffn_flops_per_token'] / 1e6:.3f}" for point in points],
            **speeds,
        },
    )
    if timed:
        typer.echo("prefill, decode: tokens/s as a multiple of the same weights', each FFN once")


def _budget(point: "Mapping[str, float]") -> str:
    if "max_loops" in point:
        return f"at most {point['max_loops']}"
    return f"penalty {point['penalty']:.4g}" if point["penalty"] else "none"
