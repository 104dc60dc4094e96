"""`versatileffn chat`: talk with a model, line by line."""

import dataclasses
import sys
from collections.abc import Iterator
from typing import Annotated, Any

import typer

from versatileffn.cli.record import JsonOption, OverwriteOption, RecordFile
from versatileffn.cli.writer import Wishes, Writer, Written, tell_speed, with_wishes
from versatileffn.errors import VersatileFFNError

NEW, EXIT = "/new", ("/exit", "/quit")


@with_wishes
def chat_command(
    model: Annotated[str, typer.Argument(help="Checkpoint: a folder, hub id or .gguf file.")],
    json: JsonOption = None,
    overwrite: OverwriteOption = False,
    *,
    wishes: Wishes,
) -> None:
    """Talk with a model; it knows what was said before.

    `/new` begins another conversation, `/exit` or the end of the input ends. Lines may come from a
    pipe; then the exit code is 1 if one of them couldn't be answered.
    """
    out = RecordFile(json, "chat", [model], overwrite)
    writer = Writer(model, wishes)
    if not writer.template:
        typer.echo(f"note: the tokenizer of {model} has no chat template: lines and answers are "
                   "read as one running text", err=True)  # fmt: skip
    said: list[str] = []
    turns: list[dict[str, Any]] = []
    answers: list[Written] = []
    refused = False
    try:
        for line in _lines():
            if line == NEW:
                said = []
                continue
            try:
                answer = writer.write([*said, line], True, f"begin another conversation, {NEW}")
            except VersatileFFNError as error:
                refused = True
                typer.echo(f"error: {error}", err=True)
                continue
            said += [line, answer.text]
            answers.append(answer)
            turns.append({"prompt": line, "of_a_new_conversation": len(said) == 2,
                          **dataclasses.asdict(answer)})  # fmt: skip
    finally:  # Ctrl-C, too
        tell_speed(answers)
        if json is not None:
            out.write({**writer.record(), "template": writer.template, "turns": turns})
    if refused:
        raise typer.Exit(1)


def _lines() -> Iterator[str]:
    """What the user says until they leave; lines with nothing in them are passed over."""
    sys.stdin.reconfigure(errors="replace")  # type: ignore[union-attr]
    by_hand = sys.stdin.isatty() and sys.stdout.isatty()
    if by_hand:
        import readline  # noqa: F401 - `input` edits lines with it

        typer.echo(f"{NEW} begins another conversation, {EXIT[0]} or Ctrl-D ends", err=True)
    while True:
        try:
            line = input("> ") if by_hand else next(sys.stdin)
        except (EOFError, StopIteration):
            if by_hand:
                typer.echo()
            return
        line = line.strip()
        if line in EXIT:
            return
        if line:
            yield line
