"""`versatileffn bench`: how fast a reuse model is on this machine, beside a dense one."""

import dataclasses
import os
from enum import StrEnum
from typing import TYPE_CHECKING, Annotated, Any

import typer

from versatileffn.cli.record import JsonOption, OverwriteOption, RecordFile

if TYPE_CHECKING:
    from versatileffn.analysis.speed import Speed


class WorkName(StrEnum):
    """What can be timed."""

    PREFILL = "prefill"
    DECODE = "decode"
    TRAINING = "training"


class DType(StrEnum):
    """In which numbers."""

    FLOAT32 = "float32"
    BFLOAT16 = "bfloat16"


def bench_command(
    model: Annotated[
        str, typer.Argument(help="Checkpoint whose FFN is reused: a folder or hub id.")
    ],
    dense: Annotated[
        str | None,
        typer.Argument(
            help="Dense checkpoint to compare with.  [default: MODEL's own weights, each FFN once, "
            "without what reuse adds]",
            show_default=False,
        ),
    ] = None,
    work: Annotated[
        list[WorkName] | None,
        typer.Option(help="What to time; repeatable.  [default: all three]", show_default=False),
    ] = None,
    batch: Annotated[
        int, typer.Option(min=1, help="Sequences of prefill and training; decode has one.")
    ] = 1,
    length: Annotated[
        int | None,
        typer.Option(
            min=1,
            help="Tokens of a sequence, or of decode's prompt.  [default: 512, or what fits]",
            show_default=False,
        ),
    ] = None,
    new_tokens: Annotated[int, typer.Option(min=1, help="Tokens that decode adds.")] = 32,
    text: Annotated[
        str | None,
        typer.Option(
            help="What both read, as in `tokenize`: loops depend on it.  [default: Python's "
            "sources; random tokens where MODEL has no tokenizer]",
            show_default=False,
        ),
    ] = None,
    dtype: Annotated[
        DType,
        typer.Option(help="Of the weights; in training, of autocast over float32 weights."),
    ] = DType.FLOAT32,
    device: Annotated[str | None, typer.Option(help="cpu, cuda, …  [default: the best]")] = None,
    threads: Annotated[
        int | None,
        typer.Option(min=1, max=os.cpu_count(), help="Of torch.  [default: torch's own]"),
    ] = None,
    seconds: Annotated[
        float, typer.Option(min=0.0, help="For each kind of work; at least five rounds.")
    ] = 10.0,
    seed: Annotated[int, typer.Option(help="Of random tokens and of noise in training.")] = 0,
    json: JsonOption = None,
    overwrite: OverwriteOption = False,
) -> None:
    """Tokens per second of prefill, greedy decoding and training steps, reuse against dense.

    Both models take turns in this process, after their results were checked; shown are medians,
    and the median of the ratios of all rounds with its quartiles.
    """
    import torch
    from rich.console import Console

    from versatileffn.analysis import twin
    from versatileffn.analysis.speed import compare
    from versatileffn.analysis.timing import Budget
    from versatileffn.cli.device import choose_device
    from versatileffn.evaluation.tasks.loading import model_sha256
    from versatileffn.provenance import versions
    from versatileffn.training.run import device_name

    out = RecordFile(json, "bench", [model, dense, text], overwrite) if json else None
    where = choose_device(device)
    if threads is not None:
        torch.set_num_threads(threads)
    works = [w for w in WorkName if work is None or w in work]
    configs = twin.read_pair(model, dense)
    length = twin.fitting_length(configs, length, new_tokens if WorkName.DECODE in works else 0)
    bf16 = dtype is DType.BFLOAT16
    for each in works:
        twin.check_fits(configs, batch * length, each is WorkName.TRAINING, bf16, where)
    ids, read = twin.token_ids(model, configs[0], text, (batch, length), seed)
    torch.manual_seed(seed)

    speeds: list[Speed] = []
    pair: dict[str, Any] = {}
    digests: dict[str, str] = {}
    held = None
    for each in works:
        stored = torch.bfloat16 if bf16 and each is not WorkName.TRAINING else torch.float32
        if held != stored:
            pair, held = {}, stored  # the old ones go before the new ones come
            loaded = twin.load_pair(model, dense, configs, stored, where)
            pair = dict(zip(SIDES, loaded, strict=True))
            del loaded
        if out and not digests:
            digests = {name: model_sha256(side) for name, side in pair.items()}
        Console(stderr=True).print(f"timing {each.value} …", style="dim")
        budget = Budget(seconds=seconds, least=5)
        speeds.append(compare(each.value, pair, ids.to(where), new_tokens, budget, bf16))
    name = f"{device_name(where)}, {torch.get_num_threads()} threads"
    _print(f"{dtype.value} on {name}; text: {read}", model, dense, speeds)
    if out:
        record = {
            "versions": versions("torch", "transformers"),
            "device": device_name(where),
            "threads": torch.get_num_threads(),
            "dtype": dtype.value,
            "models": {"reuse": model, "dense": dense},
            "model_sha256": digests,
            "text": read,
            "seed": seed,
            "speeds": [_record(speed) for speed in speeds],
        }
        out.write(record)


SIDES = ("reuse", "dense")


def _record(speed: "Speed") -> dict[str, Any]:
    """A measurement as JSON: spreads by name."""
    return dataclasses.asdict(speed) | {
        "tokens_per_second": {n: s._asdict() for n, s in speed.tokens_per_second.items()},
        "ratio": speed.ratio._asdict(),
    }


def _print(title: str, model: str, dense: str | None, speeds: "list[Speed]") -> None:
    from rich import box
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    console = Console()
    console.print(f"reuse: {escape(model)}", soft_wrap=True, highlight=False)
    twin = "the same weights, each FFN once, without what reuse adds"
    console.print(f"dense: {escape(dense or twin)}", soft_wrap=True, highlight=False)
    console.print(escape(title), soft_wrap=True, highlight=False)
    table = Table(box=box.SIMPLE_HEAD)
    columns = ("work", "tokens", "reuse tok/s", "dense tok/s", "reuse / dense", "loops")
    for column in columns:
        table.add_column(column, justify="left" if column == "work" else "right", no_wrap=True)
    for speed in speeds:
        ratio = speed.ratio
        table.add_row(
            speed.work,
            f"{speed.sequences} × {speed.tokens}",
            *(f"{speed.tokens_per_second[side].median:,.1f}" for side in SIDES),
            f"{ratio.median:.2f} ({ratio.low:.2f}–{ratio.high:.2f})",
            f"{speed.loops['reuse']:.2f}",
        )
    console.print(table)
    console.print(
        "Medians of rounds in turns, quartiles of the ratio; training is a forward and a backward "
        "pass, without the optimizer's step.",
        soft_wrap=True,
        highlight=False,
    )
