"""Text on the terminal as it is written, each token in the colour of its loops."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import typer
from rich.color import Color, blend_rgb
from rich.color_triplet import ColorTriplet
from rich.console import Console
from rich.style import Style
from rich.text import Text
from transformers.generation.streamers import BaseStreamer

from versatileffn.analysis.deciding import deciding_layers
from versatileffn.analysis.token_texts import token_by_token

if TYPE_CHECKING:
    from torch import Tensor

    from versatileffn.ffn.moe import Routing
    from versatileffn.ffn.plan import ReusePlan

PALE, DARK = ColorTriplet(255, 232, 190), ColorTriplet(240, 110, 30)
"""Of the fewest and of the most loops beyond one; black can be read on both."""


class LoopStreamer(BaseStreamer):
    """Writes what a model says token by token, with the loops that each token took.

    They are those of the pass in which the model read the token, with its cache, to go on from
    there; so a token is shown when the next one is known, and the last one, which nothing read, has
    none. `versatileffn analyze tokens` shows the same numbers for the same text.

    Where there are no colours (a pipe, NO_COLOR, a terminal without), a token's loops stand after
    it in brackets.

    Args:
        model: of ours, with layers that decide; `hear` is told what they did.
        words: its tokenizer.

    Attributes:
        pieces: `text` and `loops` (by layer that decides, None if nothing read it) of each token
            since `begin`.
    """

    def __init__(self, model: Any, words: Any) -> None:
        self.model, self.words = model, words
        self.console = Console(highlight=False, soft_wrap=True)
        self.coloured = self.console.color_system is not None and not self.console.no_color
        self.most = 0
        self.begin()

    def begin(self) -> None:
        """Be ready for another prompt; what the colours mean is said once."""
        self.text_of = token_by_token(self.words, special=False)
        self.ids: list[int] = []
        self.pieces: list[dict[str, Any]] = []
        self.prompt_is_over = False

    def put(self, value: "Tensor") -> None:
        """Take the prompt, then each new token."""
        if not self.prompt_is_over:
            self.prompt_is_over = True
            return
        self.ids.append(int(value.item()))
        self.pieces.append({"text": self.text_of(self.ids[-1]), "loops": None})

    def hear(self, decisions: "Sequence[ReusePlan | Routing]") -> None:
        """Take what was decided in a forward pass, of the prompt or of the newest token.

        Raises:
            ConfigError: no layer decides anything.
        """
        plans = deciding_layers(self.model, decisions)
        if not self.most:
            self.most = max(plan.max_loops for plan in plans.values())
            self._legend(len(plans))
        if self.pieces:
            self.pieces[-1]["loops"] = [int(plan.loop_count[0, -1]) for plan in plans.values()]
            self._show()

    def end(self) -> None:
        """Show the last token, with what is left of a character that never ended."""
        if self.pieces:
            whole = self.words.decode(self.ids, skip_special_tokens=True)
            shown = "".join(piece["text"] for piece in self.pieces)
            self.pieces[-1]["text"] += whole[len(shown) :] if whole.startswith(shown) else ""
            self._show()
        print(flush=True)

    def _show(self) -> None:
        """Write the newest token."""
        piece = self.pieces[-1]
        if self.coloured:
            mean = mean_loops(piece)
            style = Style() if mean is None else colour(round(mean), self.most)
            self.console.print(Text(piece["text"], style, end=""), end="")
        else:
            print(bracketed(piece), end="", flush=True)

    def _legend(self, layers: int) -> None:
        """Say what the colours, or the brackets, mean."""
        one = "in the one layer that decides"
        what = f"of a token, {one if layers == 1 else f'mean of the {layers} layers that decide'}"
        if not self.coloured:
            typer.echo(f"in brackets: loops {what}", err=True)
            return
        key = [Text(f" {n} ", colour(n, self.most)) for n in range(1, self.most + 1)]
        legend = Text.assemble("loops ", *key, f" {what}")
        Console(stderr=True, highlight=False, soft_wrap=True).print(legend)


def mean_loops(piece: dict[str, Any]) -> float | None:
    """Of the layers that decide; None for a token that nothing read."""
    loops = piece["loops"]
    return None if loops is None else sum(loops) / len(loops)


def bracketed(piece: dict[str, Any]) -> str:
    """A token with its loops after it; nothing for a part of a character."""
    mean = mean_loops(piece)
    shown = "" if mean is None or not piece["text"] else f"[{round(mean, 1):g}]"
    return f"{piece['text']}{shown}"


def colour(loops: int, most: int) -> Style:
    """The terminal's own colours for one loop, then the darker the more."""
    if loops <= 1:
        return Style()
    share = (loops - 2) / max(1, most - 2)
    ground = Color.from_triplet(blend_rgb(PALE, DARK, share))
    return Style(color=Color.parse("black"), bgcolor=ground)
