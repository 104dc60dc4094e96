"""`versatileffn upcycle`: a dense checkpoint in, a reuse model out."""

import os
import re
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from transformers import PreTrainedModel

RECEIPT = "receipt.json"
EARLIER = re.compile(
    r"(config|generation_config|receipt|tokenizer|tokenizer_config|special_tokens_map|added_tokens|"
    r"vocab|model\.safetensors\.index)\.json|model(-\d{5}-of-\d{5})?\.safetensors|"
    r"(tokenizer|spiece|sentencepiece\.bpe)\.model|merges\.txt|chat_template\.jinja"
)
"""Names that this command wrote before its receipts listed files and their digests."""


class Target(StrEnum):
    """What a dense checkpoint can become."""

    VERSATILE = "versatile"
    K_LOOP = "k-loop"
    MOE = "moe"
    DENSE = "dense"


class Gains(StrEnum):
    """The form of the reuse."""

    FIXED = "fixed"
    LEARNED = "learned"


class FusionName(StrEnum):
    """How width and depth meet."""

    DIFFICULTY = "difficulty"
    AVERAGE = "average"
    WIDTH = "width"
    DEPTH = "depth"


MATTERS = {
    Target.VERSATILE: {
        "reuse_gains", "num_experts", "top_k", "d_expert", "max_loops", "fusion"
    },
    Target.K_LOOP: {"reuse_gains", "num_loops"},
    Target.MOE: {"reuse_gains", "num_experts", "top_k", "d_expert"},
    Target.DENSE: set[str](),
}  # fmt: skip
"""Which options have an effect on which target."""


def upcycle_command(
    source: Annotated[
        str, typer.Argument(help="Dense checkpoint: a folder, a hub id, or a .gguf file.")
    ],
    out: Annotated[Path, typer.Argument(help="Folder to write; must not exist or be empty.")],
    to: Annotated[Target, typer.Option(help="What to make of it.")] = Target.VERSATILE,
    gains: Annotated[
        Gains | None,
        typer.Option(help="learned: starts exactly at the dense model. fixed: the paper's form, "
                     "far from it until it is trained.  [default: learned]"),
    ] = None,
    num_experts: Annotated[int | None, typer.Option(help="N, experts.  [default: 8]")] = None,
    top_k: Annotated[
        int | None, typer.Option(help="K, experts selected for each token.  [default: 2]")
    ] = None,
    d_expert: Annotated[
        int | None, typer.Option(help="f, hidden neurons of one expert.  [default: F/N]")
    ] = None,
    max_loops: Annotated[
        int | None, typer.Option(help="L, most loops of a token (versatile).  [default: 4]")
    ] = None,
    num_loops: Annotated[
        int | None, typer.Option(help="Loops of every token (k-loop).  [default: 2]")
    ] = None,
    fusion: Annotated[
        FusionName | None,
        typer.Option(help="How width and depth meet (versatile).  [default: difficulty]"),
    ] = None,
    seed: Annotated[int, typer.Option(help="Seed of the new tensors.")] = 0,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Replace OUT if all in it is this command's.")
    ] = False,
) -> None:  # fmt: skip
    """Turn a dense checkpoint into a model whose FFN is reused, and print the receipt."""
    from versatileffn.errors import ConfigError
    from versatileffn.ffn.config import FFNConfig
    from versatileffn.upcycle import upcycle
    from versatileffn.workspace.durable import check_space, write_json, writing
    from versatileffn.workspace.folder import new_folder
    from versatileffn.workspace.manifest import FILES, digests

    given = {
        "reuse_gains": gains and gains.value,
        "num_experts": num_experts,
        "top_k": top_k,
        "d_expert": d_expert,
        "max_loops": max_loops,
        "num_loops": num_loops,
        "fusion": fusion and fusion.value,
    }
    fields: dict[str, Any] = {name: value for name, value in given.items() if value is not None}
    idle = sorted(set(fields) - MATTERS[to])
    if idle:
        raise ConfigError(f"{idle[0]} has no effect on a {to.value} model: leave it out")
    if to is not Target.DENSE:
        fields.setdefault("reuse_gains", Gains.LEARNED.value)
    config = FFNConfig(variant=to.value, **fields)
    target = _check_places(source, out, overwrite)

    model, receipt = upcycle(source, config, seed=seed)
    check_space(target, model.num_parameters() * model.dtype.itemsize)
    with new_folder(out, RECEIPT, overwrite, earlier=EARLIER) as folder, writing(out):
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
    target = check_free(out, RECEIPT, overwrite, EARLIER)
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
