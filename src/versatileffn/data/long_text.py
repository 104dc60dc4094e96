"""Token ids of a text of any length, in pieces: memory depends on the piece, not on the text.

A tokenizer takes some 200 bytes of memory for each byte that it is given at once. So a long text is
encoded in windows that overlap, and one window hands over to the next where both have the same
tokens, away from the characters that only one of them sees. Two rules make the result that of the
whole text:

- *A cut of the pre-tokenizer.* Pre-tokenizers go from left to right and look a few characters
  ahead; two windows that agree on a cut go on alike.
- *Merges are decided by neighbours.* Tokens are what byte-pair encoding makes of a word if and only
  if each two neighbours are what it makes of the two alone. So within a word that reaches across
  (a text without spaces; any text, where there is no pre-tokenizer, as with Llama 2) two windows
  may be joined at a token that both have.

Where neither holds, windows are joined where many tokens agree, and simply cut where none do;
`uncertain` counts these places, for the caller to tell.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from tokenizers import Tokenizer, models

WINDOW = 2**17
"""Characters encoded at once."""
LONGEST_WINDOW = 2**22
"""Characters to which a window grows in search of a place to hand over."""
OVERLAP = 2**12
"""Characters that two windows share; more where they don't agree on any token."""
MARGIN = 2**9
"""Characters before a window's end whose tokens are not compared: what follows may change them."""
AGREEMENT = 16
"""Tokens in a row that must agree within a word."""
_WORD_END = re.compile(r"\S(?=\s)")


@dataclass(frozen=True)
class _Window:
    """The tokens of a text's characters [start, stop).

    Args:
        start, stop: characters of the text.
        ids: token ids.
        ends: for each token, the character of the text after it.
        words: for each token, which piece of the pre-tokenizer it belongs to.
    """

    start: int
    stop: int
    ids: np.ndarray
    ends: np.ndarray
    words: np.ndarray

    def begins_word(self, first: int, stop: int) -> np.ndarray:
        """Whether the pre-tokenizer cuts before each of the tokens [first, stop)."""
        return self.words[first:stop] != np.append(-1, self.words)[first:stop]

    def last_cut(self, after: int, limit: int) -> int | None:
        """The last character in (after, limit] where the pre-tokenizer cuts; else, a token ends."""
        first, stop = np.searchsorted(self.ends, [after, limit], side="right")
        ends = self.ends[first:stop]
        cuts = ends[self.words[first:stop] != np.append(self.words, -1)[first + 1 : stop + 1]]
        found = cuts if len(cuts) else ends
        return int(found[-1]) if len(found) else None


def parts_at_spaces(text: str, size: int = WINDOW) -> Iterator[str]:
    """Cut a text into parts of about `size` characters, between a word and the space after it.

    That is where a byte-level pre-tokenizer cuts, too, so the parts have the words of the whole.
    """
    start = 0
    while len(text) - start > size:
        spaces = (
            match.end() for match in _WORD_END.finditer(text, start + size // 2, start + size)
        )
        stop = max(spaces, default=start + size)
        yield text[start:stop]
        start = stop
    yield text[start:]


class LongTextEncoder:
    """Encodes texts of any length, without special tokens around them.

    Args:
        tokenizer: its truncation and padding are turned off.
        window: characters encoded at once; a text no longer than that is encoded whole.
        longest_window: characters to which a window grows in search of a place to hand over.
    """

    def __init__(
        self, tokenizer: Tokenizer, window: int = WINDOW, longest_window: int = LONGEST_WINDOW
    ) -> None:
        tokenizer.no_truncation()
        tokenizer.no_padding()
        self.tokenizer = tokenizer
        self.window, self.longest_window = window, longest_window
        self.overlap = min(OVERLAP, window // 4)
        self.margin = min(MARGIN, self.overlap // 4)
        model = tokenizer.model
        self._joins_within_words = isinstance(model, models.BPE) and not model.dropout
        self.uncertain = 0
        """Places so far where the tokens may not be those of the whole text."""

    def pieces(self, text: str) -> Iterator[list[int]]:
        """Yield the token ids of `text`, one piece after the other."""
        left, first = self._encode(text, 0, self.window), 0
        while left.stop < len(text):
            size = left.stop - left.start
            if (handover := self._handover(text, left, first)) is not None:
                stop, right, first_of_right = handover
            elif size < self.longest_window:
                left = self._encode(text, left.start, 2 * size)
                continue
            else:
                self.uncertain += 1
                right = self._encode(text, left.stop, self.window)
                stop, first_of_right = len(left.ids), 0
            yield left.ids[first:stop].tolist()
            left, first = right, first_of_right
        yield left.ids[first:].tolist()

    def _handover(self, text: str, left: _Window, first: int) -> tuple[int, _Window, int] | None:
        """Where the next window takes over from `left`, whose tokens are wanted from `first` on.

        Returns:
            The first token of `left` that is no more wanted, the next window, its first token that
            is; None where the two agree nowhere.
        """
        after = max(left.start, int(left.ends[first]) if first < len(left.ids) else left.stop)
        overlap = self.overlap
        while (start := left.last_cut(after, left.stop - overlap)) is not None:
            right = self._encode(text, start, left.stop - start + self.window)
            in_left, in_right, count = _agreement(left, right, first, left.stop - self.margin)
            cuts = left.begins_word(in_left, in_left + count)
            cuts &= right.begins_word(in_right, in_right + count)
            if cuts.any() or count >= AGREEMENT:
                self.uncertain += not (cuts.any() or self._joins_within_words)
                return in_left, right, in_right
            overlap *= 4
        return None

    def _encode(self, text: str, start: int, size: int) -> _Window:
        stop = min(start + size, len(text))
        encoding = self.tokenizer.encode(text[start:stop], add_special_tokens=False)
        offsets = np.array(encoding.offsets, np.int64).reshape(-1, 2)
        words = np.array(encoding.word_ids, np.int64)
        return _Window(start, stop, np.array(encoding.ids), start + offsets[:, 1], words)


def _agreement(left: _Window, right: _Window, first: int, limit: int) -> tuple[int, int, int]:
    """The longest run of equal tokens that ends with the last token of `left` by `limit`.

    Args:
        left, right: two windows that overlap.
        first: the first token of `left` that counts.
        limit: a character.

    Returns:
        Where the run begins in `left` and in `right`, and its length in tokens, maybe 0.
    """
    stop = int(np.searchsorted(left.ends, limit, side="right"))
    end = left.ends[stop - 1] if stop else left.start
    stop_of_right = int(np.searchsorted(right.ends, end, side="right"))
    most = max(0, min(stop - first, stop_of_right))
    in_left, in_right = slice(stop - most, stop), slice(stop_of_right - most, stop_of_right)
    differ = (left.ids[in_left] != right.ids[in_right]) | (
        left.ends[in_left] != right.ends[in_right]
    )
    where = np.flatnonzero(differ)
    count = most - (int(where[-1]) + 1 if len(where) else 0)
    return stop - count, stop_of_right - count, count
