"""`versatileffn generate`: let a model go on from a prompt, by a budget."""

import dataclasses
from typing import Annotated

import typer

from versatileffn.cli.record import JsonOption, OverwriteOption, RecordFile
from versatileffn.cli.writer import Wishes, Writer, tell_speed, with_wishes


@with_wishes
def generate_command(
    model: Annotated[str, typer.Argument(help="Checkpoint: a folder, hub id or .gguf file.")],
    prompt: Annotated[str, typer.Argument(help="What the text begins with, or what is asked.")],
    chat: Annotated[
        bool, typer.Option("--chat/--plain", help="Use the tokenizer's chat template, if any.")
    ] = True,
    json: JsonOption = None,
    overwrite: OverwriteOption = False,
    *,
    wishes: Wishes,
) -> None:
    """Write on from a prompt, token by token, and say how fast."""
    out = RecordFile(json, "generate", [model], overwrite)
    writer = Writer(model, wishes)
    written = writer.write([prompt], chat, "shorten the prompt")
    tell_speed([written])
    if json is not None:  # a digest of a large model takes a while
        out.write({**writer.record(), "prompt": prompt, **dataclasses.asdict(written)})
