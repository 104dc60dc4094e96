"""`versatileffn upcycle`: a dense checkpoint in, a reuse model out."""

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer


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


def upcycle_command(
    source: Annotated[str, typer.Argument(help="Dense checkpoint: a folder, or a hub id.")],
    out: Annotated[Path, typer.Argument(help="Folder to write; must not exist or be empty.")],
    to: Annotated[Target, typer.Option(help="What to make of it.")] = Target.VERSATILE,
    gains: Annotated[
        Gains, typer.Option(help="fixed: the paper's form. learned: starts at the dense function.")
    ] = Gains.FIXED,
    num_experts: Annotated[int, typer.Option(help="N, experts.")] = 8,
    top_k: Annotated[int, typer.Option(help="K, experts selected for each token.")] = 2,
    d_expert: Annotated[
        int | None, typer.Option(help="f, hidden neurons of one expert.  [default: F/N]")
    ] = None,
    max_loops: Annotated[int, typer.Option(help="L, most loops of a token (versatile).")] = 4,
    num_loops: Annotated[int, typer.Option(help="Loops of every token (k-loop).")] = 2,
    fusion: Annotated[
        FusionName, typer.Option(help="How width and depth meet.")
    ] = FusionName.DIFFICULTY,
    seed: Annotated[int, typer.Option(help="Seed of the new tensors.")] = 0,
    overwrite: Annotated[bool, typer.Option(help="Replace OUT if it exists.")] = False,
) -> None:
    """Turn a dense checkpoint into a model whose FFN is reused, and print the receipt."""
    from transformers import AutoTokenizer

    from versatileffn.ffn.config import FFNConfig
    from versatileffn.files import check_free, new_folder
    from versatileffn.upcycle import upcycle

    check_free(out, overwrite)
    config = FFNConfig(
        variant=to.value,
        reuse_gains=gains.value,
        num_experts=num_experts,
        top_k=top_k,
        d_expert=d_expert,
        max_loops=max_loops,
        num_loops=num_loops,
        fusion=fusion.value,
    )
    model, receipt = upcycle(source, config, seed=seed)
    with new_folder(out, overwrite) as folder:
        model.save_pretrained(folder)
        receipt.save(folder / "receipt.json")
        try:
            AutoTokenizer.from_pretrained(source).save_pretrained(folder)
        except (OSError, ValueError, ImportError) as error:
            typer.echo(f"note: no tokenizer was copied ({str(error).splitlines()[0]})", err=True)
    typer.echo(str(receipt))
    typer.echo(f"{'written to':>16}  {out}")
