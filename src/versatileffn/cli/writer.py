"""A model that writes on: what `generate` and `chat` share."""

import dataclasses
import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any

import typer

from versatileffn.cli.options import (
    Bf16Option,
    DeviceOption,
    choose_device,
    precision,
    with_options,
)
from versatileffn.errors import ConfigError, DataError

if TYPE_CHECKING:
    from torch import Tensor

MOST_TOKENS = 256
"""By default."""
OPTIONS: dict[str, tuple[Any, Any]] = {
    "max_loops": (
        Annotated[
            int | None,
            typer.Option(
                "--budget", "--max-loops",
                help="Most loops of a token; 1 costs what the dense model costs.",
            ),
        ],
        None,
    ),
    "mean_loops": (
        Annotated[
            float | None,
            typer.Option(
                help="Loops of a token on average, by the curve of `versatileffn calibrate`."
            ),
        ],
        None,
    ),
    "show_loops": (
        Annotated[
            bool,
            typer.Option(
                "--show-loops",
                help="Colour each new token by the loops that it took; in a pipe, or with NO_COLOR "
                "set, they follow it in brackets.",
            ),
        ],
        False,
    ),
    "max_new_tokens": (
        Annotated[
            int | None,
            typer.Option(
                min=1, help="Stop after so many tokens.", show_default=f"{MOST_TOKENS}, if they fit"
            ),
        ],
        None,
    ),
    "temperature": (
        Annotated[float, typer.Option(min=0.0, help="Of sampling; 0 takes the likeliest token.")],
        0.0,
    ),
    "seed": (Annotated[int, typer.Option(help="Of sampling.")], 0),
    "device": (DeviceOption, None),
    "bf16": (Bf16Option, False),
}  # fmt: skip


@dataclass(frozen=True)
class Wishes:
    """What the user asks of a model that writes, one field for each of `OPTIONS`."""

    max_loops: int | None
    mean_loops: float | None
    show_loops: bool
    max_new_tokens: int | None
    temperature: float
    seed: int
    device: str | None
    bf16: bool


def with_wishes(command: Callable[..., None]) -> Callable[..., None]:
    """Give a command the options of all that write, in place of its argument `wishes`."""

    def run(*arguments: Any, **given: Any) -> None:
        wishes = Wishes(**{name: given.pop(name) for name in OPTIONS})
        command(*arguments, wishes=wishes, **given)

    return with_options(command, run, OPTIONS, instead_of="wishes")


@dataclass(frozen=True)
class Written:
    """What a model wrote, JSON-able.

    Args:
        text: without special tokens.
        prompt_tokens, tokens: how many it read before, and wrote.
        seconds: for both.
        pieces: each token's text and loops, see `LoopStreamer`; None where they weren't asked for.
    """

    text: str
    prompt_tokens: int
    tokens: int
    seconds: float
    pieces: list[dict[str, Any]] | None


class Writer:
    """A loaded model and its tokenizer, by a budget.

    Args:
        source: the checkpoint.
        wishes: what is asked of it.

    Attributes:
        template: whether the tokenizer has a chat template.

    Raises:
        CheckpointError, DataError: it can't be loaded.
        ConfigError: the model has no such budget, or nothing decides whose loops could be shown.
    """

    def __init__(self, source: str, wishes: Wishes) -> None:
        import torch

        from versatileffn.analysis.deciding import deciding_layers
        from versatileffn.budget import compute_budget
        from versatileffn.cli.loop_colours import LoopStreamer
        from versatileffn.evaluation.observe import observe
        from versatileffn.evaluation.tasks.loading import load_subject
        from versatileffn.models.family import is_reuse

        subject = load_subject(source, precision(wishes.bf16), choose_device(wishes.device))
        self.source, self.wishes = source, wishes
        self.model, self.words = subject.model, subject.tokenizer
        self.template = bool(getattr(self.words, "chat_template", None))
        budget: dict[str, Any] = {"max_loops": wishes.max_loops, "mean_loops": wishes.mean_loops}
        self.budget = {name: value for name, value in budget.items() if value is not None}
        if self.budget:
            with compute_budget(self.model, **self.budget):
                pass  # before anything is read
        self.loops: LoopStreamer | None = None
        if wishes.show_loops:
            probe = torch.zeros(1, 1, dtype=torch.int64, device=self.model.device)
            seen = observe(self.model, [probe]) if is_reuse(self.model.config) else ()
            deciding_layers(self.model, next((each.decisions for each in seen), ()))
            self.loops = LoopStreamer(self.model, self.words)
        torch.manual_seed(wishes.seed)

    def write(self, said: Sequence[str], template: bool, remedy: str) -> Written:
        """Go on from what was said, printing each token.

        Args:
            said: by the user and the model in turns, the user's first and last.
            template: put it into the chat template, else it is one running text.
            remedy: where it is too long.

        Raises:
            ConfigError: there is nothing to go on from, or too much.
            DataError: the chat template fails.
        """
        import torch
        from transformers.generation.streamers import BaseStreamer, TextStreamer

        from versatileffn.evaluation.observe import overhear
        from versatileffn.models.checkpoint import quiet_transformers

        ids_BT = self._ids(said, template).to(self.model.device)
        options: dict[str, Any] = {
            "max_new_tokens": self._room(ids_BT.shape[1], remedy),
            "do_sample": self.wishes.temperature > 0,
            **self.budget,
        }
        if self.wishes.temperature:
            options["temperature"] = self.wishes.temperature
        shown: BaseStreamer
        heard: AbstractContextManager[None]
        if self.loops is None:
            shown = TextStreamer(self.words, skip_prompt=True, skip_special_tokens=True)
            heard = nullcontext()
        else:
            self.loops.begin()
            shown, heard = self.loops, overhear(self.model, self.loops.hear)
        with quiet_transformers(), heard:
            began = time.perf_counter()
            text_T = self.model.generate(
                ids_BT, attention_mask=torch.ones_like(ids_BT), streamer=shown, **options
            )[0, ids_BT.shape[1] :]  # fmt: skip
            seconds = time.perf_counter() - began
        text = self.words.decode(text_T, skip_special_tokens=True)
        pieces = None if self.loops is None else self.loops.pieces
        return Written(text, ids_BT.shape[1], len(text_T), seconds, pieces)

    def record(self) -> dict[str, Any]:
        """What stands in a record, beside what was written."""
        from versatileffn.evaluation.tasks.loading import model_sha256
        from versatileffn.provenance import device_name

        asked = dataclasses.asdict(self.wishes)
        return {
            "device": device_name(self.model.device),
            "dtype": "bfloat16" if asked.pop("bf16") else "float32",
            "model": self.source,
            "model_sha256": model_sha256(self.model),
            **{name: value for name, value in asked.items() if name != "device"},
        }

    def _ids(self, said: Sequence[str], template: bool) -> "Tensor":
        """What the model reads, [1, T]."""
        from jinja2 import TemplateError

        ids_BT: Tensor
        if template and self.template:
            roles = ("user", "assistant")
            turns = [{"role": roles[n % 2], "content": text} for n, text in enumerate(said)]
            try:
                ids_BT = self.words.apply_chat_template(
                    turns, add_generation_prompt=True, return_tensors="pt", return_dict=True
                )["input_ids"]
            except TemplateError as error:
                raise DataError(
                    f"the chat template of {self.source} refuses this ({error}): mend it, or use "
                    "`versatileffn generate --plain`"
                ) from None
        else:
            ids_BT = self.words("\n".join(said), return_tensors="pt")["input_ids"]
        if not ids_BT.numel():
            raise ConfigError("the prompt is empty: give at least a word")
        return ids_BT

    def _room(self, length: int, remedy: str) -> int:
        """How many tokens may follow so many."""
        from versatileffn.evaluation.tasks.loading import context_length

        context, wanted = context_length(self.model), self.wishes.max_new_tokens
        if length + (wanted or 1) > context:
            raise ConfigError(
                f"{length} tokens to read and {wanted or 1} to follow are more than the {context} "
                f"that the model takes: {remedy}"
                + (", or lower --max-new-tokens" if wanted and wanted > 1 else "")
            )
        return wanted or min(MOST_TOKENS, context - length)


def tell_speed(written: Sequence[Written]) -> None:
    """Say how fast it was, beside the text."""
    tokens = sum(each.tokens for each in written)
    seconds = sum(each.seconds for each in written)
    if seconds:
        typer.echo(f"{tokens} tokens, {tokens / seconds:.1f} tokens/s", err=True)
