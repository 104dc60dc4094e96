"""`versatileffn bench`: how fast a reuse model is on this machine, beside a dense one."""

from enum import StrEnum
from typing import Annotated, Any

import typer

from versatileffn.cli.options import DeviceOption, choose_device, precision
from versatileffn.cli.record import JsonOption, OverwriteOption, RecordFile
from versatileffn.cli.table import print_table
from versatileffn.errors import ConfigError

Work = StrEnum("Work", "PREFILL DECODE TRAINING")
DType = StrEnum("DType", "FLOAT32 BFLOAT16")
REMEDY = "choose a smaller --batch or --length, or other --work"
TWIN = "the same weights, each FFN once, without what reuse adds"


def bench_command(
    model: Annotated[
        str, typer.Argument(help="Checkpoint whose FFN is reused: a folder or hub id.")
    ],
    dense: Annotated[
        str | None,
        typer.Argument(help="Dense checkpoint to compare with.", show_default=TWIN),
    ] = None,
    budget: Annotated[
        int | None,
        typer.Option(help="Most loops of a token of MODEL; 1 should cost what dense costs."),
    ] = None,
    work: Annotated[
        list[Work], typer.Option(help="What to time; repeatable.")
    ] = list(Work),  # noqa: B006
    batch: Annotated[
        int, typer.Option(min=1, help="Sequences of prefill and training; decode has one.")
    ] = 1,
    length: Annotated[
        int | None,
        typer.Option(
            min=1, help="Tokens of a sequence, or of decode's prompt.",
            show_default="512, or what fits",
        ),
    ] = None,
    new_tokens: Annotated[int, typer.Option(min=1, help="Tokens that decode adds.")] = 32,
    text: Annotated[
        str | None,
        typer.Option(
            help="What both read, as in `tokenize`: loops depend on it.",
            show_default="Python's sources; random tokens where MODEL has no tokenizer",
        ),
    ] = None,
    dtype: Annotated[
        DType,
        typer.Option(help="Of the weights; in training, of autocast over float32 weights."),
    ] = DType.FLOAT32,
    device: DeviceOption = None,
    seconds: Annotated[
        float, typer.Option(min=0.0, help="For each kind of work; at least five rounds.")
    ] = 10.0,
    cpu_time: Annotated[
        bool,
        typer.Option(
            "--cpu-time",
            help="Count this process's CPU seconds, of all threads, instead of the clock's: where "
            "other programs want the CPU, too.",
        ),
    ] = False,
    seed: Annotated[int, typer.Option(help="Of random tokens and of noise in training.")] = 0,
    json: JsonOption = None,
    overwrite: OverwriteOption = False,
) -> None:  # fmt: skip
    """Tokens per second of prefill, greedy decoding and training steps, reuse against dense.

    Both models take turns in this process, after their results were checked; shown are medians,
    and the median of the ratios of all rounds with its quartiles.
    """
    import time

    import torch

    from versatileffn.analysis import speed, twin
    from versatileffn.budget import set_compute_budget
    from versatileffn.evaluation.tasks.loading import model_sha256
    from versatileffn.provenance import device_name

    out = RecordFile(json, "bench", [model, dense, text], overwrite)
    where = choose_device(device)
    if cpu_time and where.type != "cpu":
        raise ConfigError(f"--cpu-time says nothing of {where}: use --device cpu, or leave it out")
    configs = twin.read_pair(model, dense)
    length = twin.fitting_length(configs, length, new_tokens if Work.DECODE in work else 0)
    bf16, shape = dtype is DType.BFLOAT16, (batch, length)
    speeds: list[dict[str, Any]] = []
    pair: dict[str, Any] = {}
    held = None
    for each in sorted(set(work), key=list(Work).index):
        stored = precision(bf16 and each is not Work.TRAINING)
        if held != stored:
            pair, held = {}, stored  # the old ones go before the new ones come
            pair = twin.load_pair(model, dense, configs, stored, where)
            if budget is not None:
                set_compute_budget(pair["reuse"], budget)
        speed.check_fits(pair, batch * length, each.value, REMEDY)
        if not speeds:
            torch.manual_seed(seed)
            ids, read = twin.token_ids(model, configs[0].vocab_size, text, shape)
            ids = ids.to(where)
            digests = {n: model_sha256(m) for n, m in pair.items()} if json else {}
        typer.echo(f"timing {each.value} …", err=True)
        clock = time.process_time if cpu_time else time.perf_counter
        options: dict[str, Any] = {"seconds": seconds, "least": 5, "clock": clock}
        speeds.append(speed.compare(each.value, pair, ids, new_tokens, bf16, **options))
    name = f"{device_name(where)}, {torch.get_num_threads()} threads"
    limit = "" if budget is None else f", max_loops={budget}"
    name += ", CPU time" if cpu_time else ""
    _print(f"{dtype.value} on {name}; text: {read}", f"{model}{limit}", dense, speeds)
    record = {
        "device": device_name(where),
        "threads": torch.get_num_threads(),
        "dtype": dtype.value,
        "max_loops": budget,
        "clock": "cpu" if cpu_time else "wall",
        "models": {"reuse": model, "dense": dense},
        "model_sha256": digests,
        "text": read,
        "seed": seed,
        "speeds": speeds,
    }
    out.write(record)


def _print(title: str, model: str, dense: str | None, speeds: list[dict[str, Any]]) -> None:
    typer.echo(f"reuse: {model}\ndense: {dense or TWIN}\n{title}")
    columns = {
        "work": [speed["work"] for speed in speeds],
        "tokens": [f"{speed['sequences']} × {speed['tokens']}" for speed in speeds],
    }
    for side in ("reuse", "dense"):
        rates = [speed["tokens_per_second"][side]["median"] for speed in speeds]
        columns[f"{side} tok/s"] = [f"{rate:,.1f}" for rate in rates]
    columns["reuse / dense"] = ["{median:.2f} ({low:.2f}–{high:.2f})".format(**speed["ratio"])
                                for speed in speeds]  # fmt: skip
    columns["loops"] = [f"{speed['loops']['reuse']:.2f}" for speed in speeds]
    print_table("", columns)
    typer.echo(
        "Medians of rounds in turns, quartiles of the ratio; training is a forward and a "
        "backward pass, without the optimizer's step."
    )
