"""What each token adds to the text."""

from collections.abc import Callable, Iterable
from typing import Any

from tokenizers import Tokenizer
from tokenizers.decoders import DecodeStream

from versatileffn.errors import DataError


def token_texts(tokenizer: Any, ids: Iterable[int]) -> list[str]:
    """The text of each token, as it stands in the whole; joined, they are the text.

    A character that takes several tokens is the last one's, and the others have none.

    Args:
        tokenizer: a fast one of Transformers.
        ids: of one sequence.

    Raises:
        DataError: the tokenizer is none of the library `tokenizers`.
    """
    text_of = token_by_token(tokenizer)
    return [text_of(int(token)) for token in ids]


def token_by_token(tokenizer: Any, special: bool = True) -> Callable[[int], str]:
    """A function that takes the tokens of one sequence in turn, and gives the text of each.

    Args:
        tokenizer: as of `token_texts`.
        special: special tokens have a text, too.

    Raises:
        DataError: the tokenizer is none of the library `tokenizers`.
    """
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if not isinstance(backend, Tokenizer):
        raise DataError(
            f"a {type(tokenizer).__name__} can't say what each token adds to a text: give a model "
            "with a tokenizer.json"
        )
    stream = DecodeStream(skip_special_tokens=not special)
    return lambda token: stream.step(backend, token) or ""
