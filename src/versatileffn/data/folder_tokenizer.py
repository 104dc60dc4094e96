"""The tokenizer of a token folder in the making: one that exists, or a BPE of the train split."""

from collections.abc import Callable, Iterator
from pathlib import Path

from transformers import PreTrainedTokenizerFast

from versatileffn.data.corpus import Corpus
from versatileffn.data.meta import TokenizerMeta
from versatileffn.data.pipeline import Progress
from versatileffn.data.split import TRAIN, split_of
from versatileffn.data.tokenizers import (
    TOKENIZER_FOLDER,
    describe,
    find_tokenizer,
    save_tokenizer,
    train_bpe,
)
from versatileffn.errors import ConfigError
from versatileffn.workspace.durable import remove, write_json
from versatileffn.workspace.manifest import FILES, damage, digests, files_of, read_record

BPE_SAMPLE_BYTES = 32 * 2**20  # more text hardly changes a small vocabulary
SEAL = "tokenizer.json"
"""Of the work beside the folder: what the tokenizer's files were when it was made."""


def check_tokenizer_options(tokenizer: str, vocab_size: int | None, eos_token: str | None) -> None:
    """Raise ConfigError for an argument of `tokenize_corpus` that the tokenizer passes over."""
    if tokenizer == "bpe" and eos_token is not None:
        raise ConfigError(f"eos_token={eos_token!r} has no effect on `bpe`, which has its own")
    if tokenizer != "bpe" and vocab_size is not None:
        raise ConfigError(f"vocab_size={vocab_size} has no effect on {tokenizer}, only on `bpe`")


def put_tokenizer(
    folder: Path,
    work: Path,
    make: Callable[[], PreTrainedTokenizerFast],
    notice: Callable[[str], None],
) -> TokenizerMeta:
    """Give the folder its tokenizer, unless an interrupted call did, and describe it.

    Args:
        folder: the token folder.
        work: the folder beside it where records lie.
        make: finds or trains the tokenizer.
        notice: called with one line where the one that is there isn't what was written.
    """
    if _is_whole(folder / TOKENIZER_FOLDER, work / SEAL, notice):
        return describe(find_tokenizer(str(folder / TOKENIZER_FOLDER)), folder)
    described = save_tokenizer(make(), folder, work)
    write_json(work / SEAL, {FILES: digests(folder / TOKENIZER_FOLDER)})
    return described


def _is_whole(folder: Path, seal: Path, notice: Callable[[str], None]) -> bool:
    """Whether an interrupted run made the tokenizer; one that isn't what was written goes away."""
    files = files_of(read_record(seal))
    wrong = [] if files is None else damage(folder, files)
    if wrong:
        notice(f"{folder}: {wrong[0]}: it is made again")
    if wrong or files is None:
        remove([folder])
        return False
    return True


def train_on(
    corpus: Corpus, seed: int, threshold: int | None, vocab_size: int, report: Progress
) -> PreTrainedTokenizerFast:
    """Train a BPE on about `BPE_SAMPLE_BYTES` of training text, taken evenly from all files.

    Args:
        corpus: whose text.
        seed: of the split.
        threshold: of the split, see `split_of`.
        vocab_size: tokens wanted.
        report: is told that it begins.
    """

    def sample() -> Iterator[str]:
        pieces = corpus.pieces()
        for documents in pieces:
            taken = 0
            for text in documents:
                if split_of(text, seed, threshold) == TRAIN:
                    taken += len(text)
                    yield text[:BPE_SAMPLE_BYTES]
                if taken >= BPE_SAMPLE_BYTES / len(pieces):
                    break

    report("training the tokenizer")
    return train_bpe(sample(), vocab_size)


def tokenizer_files(folder: Path) -> dict[str, str]:
    """The tokenizer's files by their names in the token folder, with checksums."""
    found = digests(folder / TOKENIZER_FOLDER)
    return {f"{TOKENIZER_FOLDER}/{name}": digest for name, digest in found.items()}
