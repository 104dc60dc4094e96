"""`versatileffn upcycle`: a dense checkpoint in, a reuse model out."""

import os
from collections.abc import Callable
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer

from versatileffn.cli.options import with_options
from versatileffn.ffn.base_config import VARIANTS, FFNConfig
from versatileffn.ffn.knobs import Knob, knobs
from versatileffn.ffn.values import Indices

OPTIONS = {"reuse_gains": "--gains"}
"""Knobs whose option isn't called like them."""
Target = StrEnum("Target", {name.upper(): name for name in reversed(VARIANTS)})  # type: ignore[misc]
"""What a dense checkpoint can become."""
PAPERS = Target("versatile")


def _option(knob: Knob) -> Any:
    """The option that a knob is; left out, it is the record's business."""
    default = "learned" if knob.name == "reuse_gains" else knob.default
    name = OPTIONS.get(knob.name, f"--{knob.name.replace('_', '-')}")
    text = f"{knob.text} ({', '.join(knob.variants)})"
    shown = False if default is None else str(default)
    hint = list[int] if knob.hint == Indices else knob.hint  # an option for each of them
    return Annotated[hint | None, typer.Option(name, help=text, show_default=shown)]


def _with_knobs(command: Callable[..., None]) -> Callable[..., None]:
    """A command whose `knobs` are an option each."""

    def run(*arguments: Any, **options: Any) -> None:
        given = {knob.name: options.pop(knob.name, None) for knob in knobs()}
        chosen = {name: value for name, value in given.items() if value not in (None, [])}
        command(*arguments, knobs=chosen, **options)

    return with_options(command, run, {k.name: (_option(k), None) for k in knobs()}, "knobs")


@_with_knobs
def upcycle_command(
    source: Annotated[
        str, typer.Argument(help="Dense checkpoint: a folder, a hub id, or a .gguf file.")
    ],
    out: Annotated[Path, typer.Argument(help="Folder to write; must not exist or be empty.")],
    to: Annotated[Target, typer.Option(help="What to make of it.")] = PAPERS,
    seed: Annotated[int, typer.Option(help="Seed of the new tensors.")] = 0,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Replace OUT if all in it is this command's.")
    ] = False,
    knobs: dict[str, Any] | None = None,
) -> None:
    """Turn a dense checkpoint into a model whose FFN is reused, and print the receipt.

    With learned gains it starts exactly at the dense model; with fixed ones, the paper's form, it
    is far from it until it is trained.
    """
    from versatileffn.errors import DataError
    from versatileffn.models.checkpoint import without_progress_bars
    from versatileffn.models.tokenizer import load_own_tokenizer
    from versatileffn.upcycle import RECEIPT, save_upcycled, upcycle
    from versatileffn.workspace.durable import check_space, writing
    from versatileffn.workspace.folder import new_folder

    exact = {"reuse_gains": "learned"} if "reuse_gains" in VARIANTS[to.value].names() else {}
    config = FFNConfig.from_dict({"variant": to.value, **exact, **(knobs or {})})
    target = _check_places(source, out, overwrite)
    model, receipt = upcycle(source, config, seed=seed)
    check_space(target, model.num_parameters() * model.dtype.itemsize)
    tokenizer, note = None, ""
    try:
        tokenizer = load_own_tokenizer(source)
    except DataError as error:
        note = f"note: no tokenizer was copied ({error})"
    with new_folder(out, RECEIPT, overwrite) as folder, writing(out), without_progress_bars():
        save_upcycled(model, receipt, folder, tokenizer)
    typer.echo(str(receipt))
    typer.echo(f"{'written to':>16}  {out}")
    if note:
        typer.echo(note, err=True)


def _check_places(source: str, out: Path, overwrite: bool) -> Path:
    """Refuse places that can't be read or mayn't be written; the folder to write, links followed.

    Raises:
        CheckpointError: the source is no path and no id.
        ConfigError: the output is taken, or holds what this command didn't write.
    """
    from versatileffn.errors import ConfigError
    from versatileffn.models.source import check_source
    from versatileffn.upcycle import RECEIPT
    from versatileffn.workspace.folder import check_free
    from versatileffn.workspace.manifest import damage, files_of, read_record

    check_source(source)
    target = check_free(out, RECEIPT, overwrite, source=os.path.expanduser(source))
    written = files_of(read_record(target / RECEIPT)) or {}
    edited = damage(target, {n: d for n, d in written.items() if os.path.lexists(target / n)})
    if edited:
        raise ConfigError(
            f"{out} isn't as this command left it ({edited[0]}), so it isn't replaced: move it "
            "away, or choose another output"
        )
    return target
