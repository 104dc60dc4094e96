"""From a corpus to a token folder: find, split, choose a tokenizer, tokenize, publish."""

import dataclasses
import hashlib
import json
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from transformers import PreTrainedTokenizerFast

from versatileffn.data.corpus import Corpus, find_corpus
from versatileffn.data.meta import MAX_SEED, SplitMeta, TokenMeta
from versatileffn.data.output import check_output, replacing, resolve_output
from versatileffn.data.pipeline import DocumentKeys, Progress, SplitTokenizer, run_stage
from versatileffn.data.split import TRAIN, VAL, check_val_size, split_of, val_threshold
from versatileffn.data.tokenizers import (
    MAX_VOCAB_SIZE,
    MIN_VOCAB_SIZE,
    TOKENIZER_FOLDER,
    describe,
    find_tokenizer,
    save_tokenizer,
    train_bpe,
)
from versatileffn.errors import ConfigError
from versatileffn.provenance import versions

VOCAB_SIZE = 4096
VAL_FRACTION = 0.02
BPE_SAMPLE_BYTES = 32 * 2**20  # more text hardly changes a small vocabulary
_WORK = "work"  # datatrove's records, removed before publishing
_PACKAGES = ("datatrove", "tokenizers", "transformers")


def tokenize_corpus(
    source: str | Path | None,
    output: str | Path,
    *,
    tokenizer: str = "bpe",
    vocab_size: int | None = None,
    text_field: str | None = None,
    val_fraction: float | None = None,
    val_documents: int | None = None,
    seed: int = 0,
    workers: int = 1,
    limit_documents: int | None = None,
    document_separator: str | None = None,
    eos_token: str | None = None,
    hub_config: str | None = None,
    hub_split: str | None = None,
    overwrite: bool = False,
    progress: Progress | None = None,
) -> TokenMeta:
    """Turn a corpus into a folder of token shards, its tokenizer and meta.json.

    The same corpus and arguments give the same tokens, whatever `workers` is. An interrupted call
    leaves `OUTPUT.partial-…` behind, and the same call continues it.

    Args:
        source: a folder, a file, a Hub data set, or None for Python's own sources.
        output: the folder to make.
        tokenizer: `bpe` (trained on the train split), `olmo`, a path, or a Hub id.
        vocab_size: tokens of a `bpe` vocabulary; None: `VOCAB_SIZE`.
        text_field: field or column with the text; None: `text`.
        val_fraction: share of the documents to hold out; 0 holds none out; None: `VAL_FRACTION`.
        val_documents: number of documents to hold out, instead of the fraction.
        seed: chooses which documents are held out.
        workers: processes; a file is read by one.
        limit_documents: read only so many documents.
        document_separator: text between two documents of one text file; None: a file is one.
        eos_token: the tokenizer's end-of-text token, where it doesn't say.
        hub_config: configuration of the Hub data set.
        hub_split: split of the Hub data set; None: `train`.
        overwrite: replace an existing token folder, once the new one is complete.
        progress: called with one line now and then.

    Returns:
        What meta.json says.

    Raises:
        ConfigError: an argument is out of range, or has no effect beside the others.
        DataError: the corpus, the tokenizer or the output folder can't be used.
    """
    report = progress or (lambda line: None)
    _check_tokenizer_options(tokenizer, vocab_size, eos_token)
    check_val_size(val_fraction, val_documents)
    _check_range("seed", seed, 0, MAX_SEED)
    _check_range("workers", workers, 1)
    _check_range("limit_documents", limit_documents, 1)
    if document_separator == "":
        raise ConfigError("document_separator is empty text; leave it out, or name what cuts")
    output = resolve_output(output)
    check_output(output, overwrite, source)
    corpus = find_corpus(
        source,
        text_field=text_field,
        document_separator=document_separator,
        hub_config=hub_config,
        hub_split=hub_split,
        limit_documents=limit_documents,
    )
    vocab_size = vocab_size or VOCAB_SIZE
    if val_fraction is None and val_documents is None:
        val_fraction = VAL_FRACTION
    given = None if tokenizer == "bpe" else find_tokenizer(tokenizer, eos_token)
    settings = {
        "tokenizer": tokenizer,
        "text_field": text_field or "text",
        "val_fraction": val_fraction,
        "val_documents": val_documents,
        "limit_documents": limit_documents,
        "document_separator": document_separator,
    } | ({"vocab_size": vocab_size} if given is None else {})
    found = versions(*_PACKAGES)
    contents = given.backend_tokenizer.to_str() + str(given.eos_token) if given is not None else ""
    key = _digest(settings, found, seed, corpus.tasks, corpus.identity, contents)
    with replacing(output, key, overwrite) as folder:
        job = _Job(corpus, folder, seed, workers, report)
        threshold = val_threshold(_read_keys(job), val_fraction, val_documents, corpus.source)
        if (folder / TOKENIZER_FOLDER).is_dir():  # an interrupted run got this far
            chosen = find_tokenizer(str(folder / TOKENIZER_FOLDER))
            described = describe(chosen, folder)
        else:
            chosen = given if given is not None else _train(job, threshold, vocab_size)
            described = save_tokenizer(chosen, folder)
        token_bytes: Literal[2, 4] = 2 if described.vocab_size <= 2**16 else 4
        splits = _write_shards(job, threshold, str(chosen.eos_token), token_bytes)
        shutil.rmtree(folder / _WORK)
        meta = TokenMeta(described, splits, corpus.source, seed, token_bytes, settings, found)
        meta.save(folder)
    return TokenMeta.load(output)


@dataclass(frozen=True)
class _Job:
    """What every stage needs: the corpus, the folder to fill, and how to go about it."""

    corpus: Corpus
    folder: Path
    seed: int
    workers: int
    report: Progress


def _read_keys(job: _Job) -> np.ndarray:
    """Look at every document once: all bad input shows here, before anything expensive."""

    def on_progress(state: str) -> None:
        job.report(f"reading the corpus: {state}")

    folder = job.folder / _WORK / "keys"
    step = DocumentKeys(folder, job.seed)
    run_stage(job.corpus, step, job.folder / _WORK / "read", job.workers, on_progress)
    return np.concatenate([np.load(path) for path in sorted(folder.glob("*.npy"))])


def _train(job: _Job, threshold: int | None, vocab_size: int) -> PreTrainedTokenizerFast:
    """Train a BPE on about `BPE_SAMPLE_BYTES` of training text, taken evenly from all files."""

    def sample() -> Iterator[str]:
        pieces = job.corpus.pieces()
        for documents in pieces:
            taken = 0
            for document in documents:
                if split_of(document.text, job.seed, threshold) == TRAIN:
                    taken += len(document.text)
                    yield document.text
                if taken >= BPE_SAMPLE_BYTES / len(pieces):
                    break

    job.report("training the tokenizer")
    return train_bpe(sample(), vocab_size)


def _write_shards(
    job: _Job, threshold: int | None, eos_token: str, token_bytes: int
) -> dict[str, SplitMeta]:
    """Tokenize both splits into shards, and count them."""

    def on_progress(state: str) -> None:
        tokens = sum(path.stat().st_size for path in job.folder.glob("*/*.ds")) // token_bytes
        job.report(f"tokenizing: {tokens / 1e6:.1f}M tokens, {state}")

    file = job.folder / TOKENIZER_FOLDER / "tokenizer.json"
    step = SplitTokenizer(job.folder, file, eos_token, token_bytes, job.seed, threshold)
    records = job.folder / _WORK / "tokenize"
    totals = run_stage(job.corpus, step, records, job.workers, on_progress)
    for shard in job.folder.glob("*/*.ds"):
        if not shard.stat().st_size:  # a task may hold none of a split's documents
            shard.unlink()
            shard.with_name(f"{shard.name}.index").unlink()
    units = [unit.name for unit in dataclasses.fields(SplitMeta)]
    return {
        name: SplitMeta(**{unit: totals[f"{name}/{unit}"] for unit in units})
        for name in ([TRAIN] if threshold is None else [TRAIN, VAL])
    }


def _check_tokenizer_options(tokenizer: str, vocab_size: int | None, eos_token: str | None) -> None:
    _check_range("vocab_size", vocab_size, MIN_VOCAB_SIZE, MAX_VOCAB_SIZE)
    if tokenizer == "bpe" and eos_token is not None:
        raise ConfigError(f"eos_token={eos_token!r} has no effect on `bpe`, which has its own")
    if tokenizer != "bpe" and vocab_size is not None:
        raise ConfigError(f"vocab_size={vocab_size} has no effect on {tokenizer}, only on `bpe`")


def _check_range(name: str, value: int | None, low: int, high: int = 2**63 - 1) -> None:
    if value is not None and not low <= value <= high:
        bound = f"at least {low}" if value < low else f"at most {high}"
        raise ConfigError(f"{name}={value} must be {bound}")


def _digest(*parts: Any) -> str:
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:10]
