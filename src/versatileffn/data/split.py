"""Which documents are held out: decided by their text alone, so copies stay together."""

import hashlib

import numpy as np

from versatileffn.errors import ConfigError, DataError

TRAIN, VAL = "train", "val"
_PART = 2**20  # characters that are turned into bytes at once


def document_key(text: str, seed: int) -> int:
    """A 64-bit number that depends on nothing but the text and the seed.

    Raises:
        DataError: the text holds half a surrogate pair, which no UTF-8 can express.
    """
    salt = seed.to_bytes(16, "little", signed=True)
    digest = hashlib.blake2b(digest_size=8, salt=salt)
    for start in range(0, len(text), _PART):
        try:
            digest.update(text[start : start + _PART].encode("utf-8"))
        except UnicodeEncodeError as error:
            raise DataError(
                f"a document isn't valid Unicode ({error.reason}, character {start + error.start}, "
                f"{text[:40]!r}…); repair or remove it"
            ) from error
    return int.from_bytes(digest.digest(), "little")


def utf8_size(text: str) -> int:
    """Bytes that a text takes in UTF-8."""
    if text.isascii():
        return len(text)
    return sum(len(text[at : at + _PART].encode()) for at in range(0, len(text), _PART))


def check_val_size(val_fraction: float | None, val_documents: int | None) -> None:
    """Raise ConfigError unless the two ask for one possible held-out split."""
    if val_fraction is not None and val_documents is not None:
        raise ConfigError("val_fraction has no effect beside val_documents; give one of them")
    if val_fraction is not None and not 0 <= val_fraction < 1:
        raise ConfigError(f"val_fraction={val_fraction} must lie in [0, 1)")
    if val_documents is not None and not 0 <= val_documents < 2**63:
        raise ConfigError(f"val_documents={val_documents} must be at least 0 and below 2**63")


def val_threshold(
    keys: np.ndarray, val_fraction: float | None, val_documents: int | None, source: str
) -> int | None:
    """The largest key that is held out; the documents with smaller keys are, too.

    Takes the documents with the smallest keys until there are enough, copies of a text all or
    none. A fraction above 0 holds out at least one document.

    Args:
        keys: `document_key` of every document, uint64 of shape (documents,).
        val_fraction: share of the documents to hold out; None or 0 is none.
        val_documents: number of documents to hold out; if given, `val_fraction` has no effect.
        source: the corpus's name, for the errors.

    Returns:
        The threshold, or None if nothing is to be held out.

    Raises:
        DataError: the corpus is empty, or too small to be split.
    """
    if not len(keys):
        raise DataError(f"{source}: an empty corpus, no document holds any text; name another")
    wanted = max(1, round(val_fraction * len(keys))) if val_fraction else 0
    if val_documents is not None:
        wanted = val_documents
    if not wanted:
        return None
    distinct, counts = np.unique(keys, return_counts=True)
    if len(distinct) == 1:
        raise DataError(
            f"{source}: its only document can't be both trained on and held out, so the val split "
            "came out empty; add documents, cut text files with --document-separator, or use "
            "--val-fraction 0"
        )
    enough = int(np.searchsorted(np.cumsum(counts), wanted))
    if enough >= len(distinct) - 1 and wanted >= len(keys):
        raise DataError(
            f"{source}: holding out {wanted} of {len(keys)} documents leaves none to train on; "
            "lower --val-documents or add documents"
        )
    return int(distinct[min(enough, len(distinct) - 2)])


def split_of(text: str, seed: int, threshold: int | None) -> str:
    """`val` if the document's key is at most the threshold, else `train`."""
    held_out = threshold is not None and document_key(text, seed) <= threshold
    return VAL if held_out else TRAIN
