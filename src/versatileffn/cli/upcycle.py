"""`versatileffn upcycle`: a dense checkpoint in, a reuse model out."""

import os
from enum import StrEnum
from functools import wraps
from inspect import Parameter, signature
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from versatileffn.ffn.config import VARIANTS, FFNConfig
from versatileffn.ffn.knobs import Knob, knobs
from versatileffn.ffn.values import Indices

if TYPE_CHECKING:
    from transformers import PreTrainedModel

RECEIPT = "receipt.json"
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


def _with_knobs(command: Any) -> Any:
    """A command whose `knobs` are an option each."""

    @wraps(command)
    def run(*arguments: Any, **options: Any) -> None:
        given = {knob.name: options.pop(knob.name, None) for knob in knobs()}
        chosen = {name: value for name, value in given.items() if value not in (None, [])}
        command(*arguments, knobs=chosen, **options)

    own = [p for name, p in signature(command).parameters.items() if name != "knobs"]
    new = [
        Parameter(knob.name, Parameter.KEYWORD_ONLY, default=None, annotation=_option(knob))
        for knob in knobs()
    ]
    run.__signature__ = signature(command).replace(parameters=own + new)  # type: ignore[attr-defined]
    run.__annotations__ = {p.name: p.annotation for p in own + new}
    return run


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
    from versatileffn.upcycle import upcycle
    from versatileffn.workspace.durable import check_space, write_json, writing
    from versatileffn.workspace.folder import new_folder
    from versatileffn.workspace.manifest import FILES, digests

    exact = {"reuse_gains": "learned"} if "reuse_gains" in VARIANTS[to.value].names() else {}
    config = FFNConfig.from_dict({"variant": to.value, **exact, **(knobs or {})})
    target = _check_places(source, out, overwrite)
    model, receipt = upcycle(source, config, seed=seed)
    check_space(target, model.num_parameters() * model.dtype.itemsize)
    with new_folder(out, RECEIPT, overwrite) as folder, writing(out):
        note = _save(model, source, folder)
        write_json(folder / RECEIPT, {**receipt.to_dict(), FILES: digests(folder)})
    typer.echo(str(receipt))
    typer.echo(f"{'written to':>16}  {out}")
    if note:
        typer.echo(f"note: no tokenizer was copied ({note})", err=True)


def _check_places(source: str, out: Path, overwrite: bool) -> Path:
    """Refuse places that can't be read or mayn't be written; the folder to write, links followed.

    Raises:
        CheckpointError: the source is no path and no id.
        ConfigError: the output is taken, or holds what this command didn't write.
    """
    from versatileffn.errors import ConfigError
    from versatileffn.models.source import check_source
    from versatileffn.workspace.folder import check_free
    from versatileffn.workspace.manifest import damage, files_of, read_record

    check_source(source)
    try:
        str(out).encode()  # what writes weights and tokenizers can't open files under other names
    except UnicodeEncodeError:
        raise ConfigError(f"{str(out)!r} isn't UTF-8: choose another output") from None
    target = check_free(out, RECEIPT, overwrite)
    origin = Path(os.path.realpath(os.path.expanduser(source)))
    if target == origin or target in origin.parents:
        raise ConfigError(f"{out} holds the source {source}: choose another output")
    written = files_of(read_record(target / RECEIPT)) or {}
    edited = damage(target, {n: d for n, d in written.items() if os.path.lexists(target / n)})
    if edited:
        raise ConfigError(
            f"{out} isn't as this command left it ({edited[0]}), so it isn't replaced: move it "
            "away, or choose another output"
        )
    return target


def _save(model: "PreTrainedModel", source: str, folder: Path) -> str | None:
    """Save the model, and the source's tokenizer beside it; why not, where it has none."""
    from versatileffn.errors import DataError
    from versatileffn.models.checkpoint import without_progress_bars
    from versatileffn.models.tokenizer import load_own_tokenizer

    with without_progress_bars():
        model.save_pretrained(folder)
    try:
        tokenizer = load_own_tokenizer(source)
    except DataError as error:
        return str(error)
    tokenizer.save_pretrained(folder)
    return None
