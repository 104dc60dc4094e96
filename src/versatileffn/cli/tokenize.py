"""`versatileffn tokenize`: a corpus becomes token shards."""

import time
from pathlib import Path
from typing import Annotated, Literal

import typer
from rich.console import Console
from rich.markup import escape

from versatileffn.cli.table import print_table
from versatileffn.data.meta import TokenMeta
from versatileffn.errors import ConfigError

Executor = Literal["local", "slurm", "ray"]


def tokenize_command(
    source: Annotated[
        str | None,
        typer.Argument(
            help="A folder, a file (.txt .md .rst .py .jsonl .parquet, each also .gz .zst .xz), "
            "or a Hugging Face data set owner/name. Left out: Python's own sources and manual.",
            show_default=False,
        ),
    ] = None,
    out: Annotated[Path, typer.Option("--out", "-o", help="The token folder to make.")] = Path(
        "tokens"
    ),
    tokenizer: Annotated[
        str,
        typer.Option(
            help="`bpe` trains one on the corpus; `olmo` is OLMo's; otherwise a tokenizer.json, "
            "a folder, or a Hugging Face id."
        ),
    ] = "bpe",
    vocab_size: Annotated[
        int | None, typer.Option(help="Tokens of a `bpe` vocabulary.", show_default="4096")
    ] = None,
    text_field: Annotated[
        str | None,
        typer.Option(
            help="Field (JSONL) or column (Parquet, Hub) with the text.", show_default="text"
        ),
    ] = None,
    val_fraction: Annotated[
        float | None,
        typer.Option(
            help="Share of the documents to hold out; 0 holds none out.", show_default="0.02"
        ),
    ] = None,
    val_documents: Annotated[
        int | None, typer.Option(help="Documents to hold out, instead of a share.")
    ] = None,
    seed: Annotated[int, typer.Option(help="Chooses which documents are held out.")] = 0,
    executor: Annotated[
        Executor,
        typer.Option(
            help="What runs the tasks: processes here, an array job of Slurm, or Ray. The last two "
            "need a file system that all machines share."
        ),
    ] = "local",
    executor_option: Annotated[
        list[str] | None,
        typer.Option(
            metavar="KEY=VALUE",
            help="Of slurm: any of sbatch's (partition=cpu, time=12:00:00); of ray: memory-gb=4. "
            "Repeatable.",
            show_default=False,
        ),
    ] = None,
    workers: Annotated[
        int | None,
        typer.Option(
            help="Tasks at once; the tokens depend neither on this nor on the executor.",
            show_default="local: 1, else no limit",
        ),
    ] = None,
    limit_documents: Annotated[
        int | None, typer.Option(help="Read only so many documents.")
    ] = None,
    document_separator: Annotated[
        str | None,
        typer.Option(help="Cut text files into documents at this text; else one file is one."),
    ] = None,
    eos_token: Annotated[
        str | None, typer.Option(help="The tokenizer's end of text, where it doesn't say.")
    ] = None,
    hub_config: Annotated[
        str | None, typer.Option(help="Configuration of the Hugging Face data set.")
    ] = None,
    hub_split: Annotated[
        str | None,
        typer.Option(help="Split of the Hugging Face data set.", show_default="train"),
    ] = None,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Replace the token folder once the new is complete.")
    ] = False,
) -> None:
    """Turn a corpus into token shards with a held-out split.

    Interrupted, it continues where it was when the same command is given again.
    """
    from versatileffn.data.tokenize import tokenize_corpus

    began = time.monotonic()
    console = Console(stderr=True)

    def notice(line: str) -> None:
        console.print(
            f"note: {line.encode('utf-8', 'replace').decode()}",
            style="yellow",
            markup=False,
            soft_wrap=True,
        )

    with console.status("finding the corpus") as status:
        meta = tokenize_corpus(
            source,
            out,
            tokenizer=tokenizer,
            vocab_size=vocab_size,
            text_field=text_field,
            val_fraction=val_fraction,
            val_documents=val_documents,
            seed=seed,
            executor=executor,
            executor_options=_pairs(executor_option or []),
            workers=workers,
            limit_documents=limit_documents,
            document_separator=document_separator,
            eos_token=eos_token,
            hub_config=hub_config,
            hub_split=hub_split,
            overwrite=overwrite,
            progress=status.update,
            notice=notice,
        )
    _print_summary(meta, out, time.monotonic() - began)


def _pairs(words: list[str]) -> dict[str, str]:
    """What `--executor-option KEY=VALUE`, given several times, says."""
    for word in words:
        if not word.partition("=")[0].strip("-"):
            raise ConfigError(f"--executor-option {word!r} must be KEY=VALUE")
    return {key.lstrip("-"): value for key, _, value in (word.partition("=") for word in words)}


def _print_summary(meta: TokenMeta, out: Path, seconds: float) -> None:
    sizes = meta.splits.values()
    columns = {"split": list(meta.splits)}
    for unit in ("documents", "tokens", "bytes"):
        columns[unit] = [f"{getattr(size, unit):,}" for size in sizes]
    columns["bytes per token"] = [f"{size.bytes_per_token:.2f}" for size in sizes]
    print_table(f"{meta.source}: vocabulary {meta.vocab_size:,}, {seconds:.1f} s", columns)
    Console().print(f"Written to {escape(str(out))}", soft_wrap=True)
