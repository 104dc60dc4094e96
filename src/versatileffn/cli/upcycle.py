"""`versatileffn upcycle`: a dense checkpoint in, a reuse model out."""

from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer

RECEIPT = "receipt.json"


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
        typer.Option(help="fixed: the paper's form. learned: starts at the dense function.  "
                     "[default: fixed]"),
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
        bool, typer.Option("--overwrite", help="Replace OUT if this command wrote it.")
    ] = False,
) -> None:  # fmt: skip
    """Turn a dense checkpoint into a model whose FFN is reused, and print the receipt."""
    from versatileffn.errors import ConfigError
    from versatileffn.ffn.config import FFNConfig
    from versatileffn.models.checkpoint import without_progress_bars
    from versatileffn.upcycle import upcycle
    from versatileffn.workspace.durable import write_json
    from versatileffn.workspace.folder import check_free, new_folder
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
    config = FFNConfig(variant=to.value, **fields)
    target = check_free(out, RECEIPT, overwrite)
    origin = Path(source).expanduser().resolve()
    if target == origin or target in origin.parents:
        raise ConfigError(f"{out} holds the source {source}: choose another output")

    model, receipt = upcycle(source, config, seed=seed)
    with new_folder(out, RECEIPT, overwrite) as folder:
        with without_progress_bars():
            model.save_pretrained(folder)
        note = _copy_tokenizer(source, folder)
        write_json(folder / RECEIPT, {**receipt.to_dict(), FILES: digests(folder)})
    typer.echo(str(receipt))
    typer.echo(f"{'written to':>16}  {out}")
    if note:
        typer.echo(f"note: no tokenizer was copied ({note})", err=True)


def _copy_tokenizer(source: str, folder: Path) -> str | None:
    """Save the source's tokenizer beside the model; why not, where it has none that loads."""
    from versatileffn.errors import DataError
    from versatileffn.models.checkpoint import load_own_tokenizer

    try:
        load_own_tokenizer(source).save_pretrained(folder)
    except DataError as error:
        return str(error)
    return None
