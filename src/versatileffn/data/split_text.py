"""What a split's tokens stand for: the bytes of text behind each, and the document it is in."""

import json
import math
import re
from collections.abc import Iterator
from typing import Any

import numpy as np
from transformers import PreTrainedTokenizerFast

from versatileffn.data.packed import PackedDataset
from versatileffn.data.tokenizers import load_tokenizer
from versatileffn.errors import DataError

TOKENS_AT_ONCE = 2**20
_FALLBACK_BYTE = re.compile(r"<0x[0-9A-Fa-f]{2}>")


def bits_per_byte(nats: float, size: float) -> float:
    """Nats over so many bytes of text, in bits per byte: comparable across tokenizers.

    Args:
        nats: negative log-likelihood of some tokens, summed.
        size: UTF-8 bytes of the text that these very tokens stand for.
    """
    return nats / (size * math.log(2))


def token_sizes(tokenizer: PreTrainedTokenizerFast, vocab_size: int) -> np.ndarray:
    """UTF-8 bytes that each token adds to a text, (vocab_size,) float64; special tokens add none.

    For byte-level vocabularies that is exact, also for tokens that hold part of a character. Others
    are asked what their decoder adds for it after another token.
    """
    sizes = np.zeros(vocab_size)
    backend, special = tokenizer.backend_tokenizer, set(tokenizer.all_special_ids)
    added = tokenizer.added_tokens_decoder
    byte_level = _decodes_bytes(json.loads(backend.to_str())["decoder"])
    plain = {index: token for token, index in tokenizer.get_vocab().items() if index not in added}
    before = [index for index, token in plain.items() if token.isalpha()][:1] or list(plain)[:1]
    start = len(backend.decode(before).encode())
    for index, token in plain.items():
        if index in special:
            continue
        if byte_level:  # one character of the vocabulary's alphabet is one byte
            sizes[index] = len(token)
        elif _FALLBACK_BYTE.fullmatch(token):
            sizes[index] = 1
        else:
            sizes[index] = max(0, len(backend.decode([*before, index]).encode()) - start)
    for index, token in added.items():
        if not (token.special or index in special):
            sizes[index] = len(token.content.encode())
    return sizes


class SplitText:
    """The text behind a split's tokens.

    Some tokenizers lose bytes that no single token accounts for (spaces at a start, what they
    normalize away). The sizes of all tokens are therefore scaled so that the whole split comes to
    the bytes that were tokenized; for a byte-level vocabulary without a normalizer the factor is 1.

    Args:
        dataset: the split; it is read once.

    Raises:
        DataError: the tokenizer isn't the split's, or none of its tokens stands for text.
    """

    def __init__(self, dataset: PackedDataset) -> None:
        meta = dataset.meta
        counts, ends = np.zeros(meta.vocab_size, dtype=np.int64), []
        for start, tokens in _chunks(dataset):
            counts += np.bincount(tokens, minlength=meta.vocab_size)
            ends.append(start + np.flatnonzero(tokens == meta.eos_token_id))
        self._ends = np.concatenate(ends)  # where the stream's end-of-text tokens are
        sizes = token_sizes(load_tokenizer(dataset.folder), meta.vocab_size)
        whole = float(counts @ sizes)
        if not whole:
            raise DataError(
                f"{dataset.folder / dataset.split}: none of its tokens stands for text; the shards "
                "are damaged or another tokenizer's, tokenize again"
            )
        self._sizes = sizes if whole == dataset.size.bytes else sizes * dataset.size.bytes / whole

    def sizes(self, tokens: np.ndarray) -> np.ndarray:
        """UTF-8 bytes of text that each of some tokens stands for, float64 of the same shape."""
        return self._sizes[tokens]

    def documents(self, positions: np.ndarray) -> np.ndarray:
        """0-based number of the document at each position of the stream.

        A document ends with its end-of-text token.
        """
        return np.searchsorted(self._ends, positions, side="left")


def _chunks(dataset: PackedDataset) -> Iterator[tuple[int, np.ndarray]]:
    for start in range(0, dataset.num_tokens, TOKENS_AT_ONCE):
        yield start, dataset.tokens(start, min(start + TOKENS_AT_ONCE, dataset.num_tokens))


def _decodes_bytes(decoder: dict[str, Any] | None) -> bool:
    """Whether a tokenizer.json's decoder turns characters of its own alphabet back into bytes."""
    if decoder is None:
        return False
    inner = decoder.get("decoders", [])
    return decoder["type"] == "ByteLevel" or any(_decodes_bytes(part) for part in inner)
