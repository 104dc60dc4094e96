"""From a corpus to a token folder: find, split, choose a tokenizer, tokenize, publish."""

import dataclasses
import hashlib
import json
import platform
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy as np
from transformers import PreTrainedTokenizerFast

from versatileffn.data.corpus import Corpus, find_corpus
from versatileffn.data.meta import SplitMeta, TokenMeta
from versatileffn.data.output import check_output, replacing
from versatileffn.data.pipeline import DocumentKeys, Progress, SplitTokenizer, run_stage
from versatileffn.data.split import TRAIN, VAL, check_val_size, split_of, val_threshold
from versatileffn.data.tokenizers import (
    MIN_VOCAB_SIZE,
    TOKENIZER_FOLDER,
    describe,
    find_tokenizer,
    load_tokenizer,
    save_tokenizer,
    train_bpe,
)
from versatileffn.errors import ConfigError

BPE_SAMPLE_BYTES = 32 * 2**20  # more text hardly changes a small vocabulary
_WORK = "work"  # datatrove's records, removed before publishing
_PACKAGES = ("versatileffn", "datatrove", "tokenizers", "transformers")


def tokenize_corpus(
    source: str | Path | None,
    output: str | Path,
    *,
    tokenizer: str = "bpe",
    vocab_size: int = 4096,
    text_field: str = "text",
    val_fraction: float = 0.02,
    val_documents: int | None = None,
    seed: int = 0,
    workers: int = 1,
    limit_documents: int | None = None,
    document_separator: str | None = None,
    eos_token: str | None = None,
    hub_config: str | None = None,
    hub_split: str = "train",
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
        vocab_size: tokens of a `bpe` vocabulary.
        text_field: field or column with the text.
        val_fraction: share of the documents to hold out; 0 holds none out.
        val_documents: number of documents to hold out, instead of the fraction.
        seed: chooses which documents are held out.
        workers: processes; a file is read by one.
        limit_documents: read only so many documents.
        document_separator: text between two documents of one text file; None: a file is one.
        eos_token: the tokenizer's end-of-text token, where it doesn't say.
        hub_config: configuration of the Hub data set.
        hub_split: split of the Hub data set.
        overwrite: replace an existing token folder, once the new one is complete.
        progress: called with one line now and then.

    Returns:
        What meta.json says.

    Raises:
        ConfigError: an argument is out of range.
        DataError: the corpus, the tokenizer or the output folder can't be used.
    """
    report = progress or (lambda line: None)
    output = Path(output)
    _check_arguments(tokenizer, vocab_size, workers, limit_documents)
    check_val_size(val_fraction, val_documents)
    check_output(output, overwrite)
    corpus = find_corpus(
        source,
        text_field=text_field,
        document_separator=document_separator,
        hub_config=hub_config,
        hub_split=hub_split,
        limit_documents=limit_documents,
    )
    given = None if tokenizer == "bpe" else find_tokenizer(tokenizer, eos_token)
    settings = {
        "tokenizer": tokenizer,
        "text_field": text_field,
        "val_fraction": val_fraction,
        "val_documents": val_documents,
        "limit_documents": limit_documents,
        "document_separator": document_separator,
    } | ({"vocab_size": vocab_size} if given is None else {})
    versions = _versions()
    contents = given.backend_tokenizer.to_str() + str(given.eos_token) if given is not None else ""
    key = _digest(settings, versions, seed, corpus.tasks, corpus.identity, contents)
    with replacing(output, key, overwrite) as folder:
        job = _Job(corpus, folder, seed, workers, report)
        threshold = val_threshold(_read_keys(job), val_fraction, val_documents, corpus.source)
        if (folder / TOKENIZER_FOLDER).is_dir():  # an interrupted run got this far
            chosen = load_tokenizer(folder)
            described = describe(chosen, folder)
        else:
            chosen = given if given is not None else _train(job, threshold, vocab_size)
            described = save_tokenizer(chosen, folder)
        token_bytes = 2 if described.vocab_size <= 2**16 else 4
        splits = _write_shards(job, threshold, str(chosen.eos_token), token_bytes)
        shutil.rmtree(folder / _WORK)
        meta = TokenMeta(described, splits, corpus.source, seed, token_bytes, settings, versions)
        meta.save(folder)
    return meta


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

    def on_progress(done: int) -> None:
        job.report(f"reading the corpus: {done}/{job.corpus.tasks} tasks")

    on_progress(0)
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

    def on_progress(done: int) -> None:
        tokens = sum(path.stat().st_size for path in job.folder.glob("*/*.ds")) // token_bytes
        job.report(f"tokenizing: {tokens / 1e6:.1f}M tokens, {done}/{job.corpus.tasks} tasks")

    on_progress(0)
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


def _check_arguments(
    tokenizer: str, vocab_size: int, workers: int, limit_documents: int | None
) -> None:
    if tokenizer == "bpe" and vocab_size < MIN_VOCAB_SIZE:
        raise ConfigError(f"vocab_size={vocab_size} must be at least {MIN_VOCAB_SIZE}")
    if workers < 1:
        raise ConfigError(f"workers={workers} must be at least 1")
    if limit_documents is not None and limit_documents < 1:
        raise ConfigError(f"limit_documents={limit_documents} must be at least 1")


def _versions() -> dict[str, str]:
    versions = {"python": platform.python_version()}
    for package in _PACKAGES:
        try:
            versions[package] = version(package)
        except PackageNotFoundError:  # run from a source tree
            versions[package] = "not installed"
    return versions


def _digest(*parts: Any) -> str:
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:10]
