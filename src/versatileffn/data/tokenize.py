"""From a corpus to a token folder: find, split, choose a tokenizer, tokenize, publish."""

import hashlib
import json
import os
import warnings
from collections.abc import Callable, Mapping
from contextlib import closing
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from versatileffn.data.corpus import Corpus, find_corpus
from versatileffn.data.executors import choose_executor
from versatileffn.data.folder_tokenizer import (
    check_tokenizer_options,
    put_tokenizer,
    tokenizer_files,
    train_on,
)
from versatileffn.data.meta import (
    MAX_SEED,
    MAX_VOCAB_SIZE,
    META_FILE,
    SplitMeta,
    TokenBytes,
    TokenizerMeta,
    TokenMeta,
)
from versatileffn.data.pipeline import DocumentKeys, Progress, SplitTokenizer, run_stage
from versatileffn.data.shards import TaskRecords
from versatileffn.data.split import TRAIN, VAL, check_val_size, val_threshold
from versatileffn.data.stage import Executor
from versatileffn.data.tokenizers import MIN_VOCAB_SIZE, TOKENIZER_FOLDER, find_tokenizer
from versatileffn.errors import ConfigError, DataError, ResourceError
from versatileffn.provenance import versions
from versatileffn.workspace.durable import remove, size_text, writing
from versatileffn.workspace.folder import check_free, new_folder
from versatileffn.workspace.manifest import strangers

VOCAB_SIZE = 4096
VAL_FRACTION = 0.02
_UNITS = ("documents", "bytes", "tokens")
_PACKAGES = ("tokenizers", "transformers")


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
    executor: str = "local",
    executor_options: Mapping[str, str] | None = None,
    workers: int | None = None,
    limit_documents: int | None = None,
    document_separator: str | None = None,
    eos_token: str | None = None,
    hub_config: str | None = None,
    hub_split: str | None = None,
    overwrite: bool = False,
    progress: Progress | None = None,
    notice: Callable[[str], None] = warnings.warn,
) -> TokenMeta:
    """Turn a corpus into a folder of token shards, its tokenizer and meta.json.

    The same corpus and arguments give the same tokens, whatever runs the tasks. An interrupted call
    leaves a hidden folder beside `output` behind, and the same call continues it.

    Args:
        source: a folder, a file, a Hub data set, or None for Python's own sources.
        output: the folder to make.
        tokenizer: `bpe` (trained on the train split), `olmo`, a path, or a Hub id.
        vocab_size: tokens of a `bpe` vocabulary; None: `VOCAB_SIZE`.
        text_field: field or column with the text; None: `text`.
        val_fraction: share of the documents to hold out; 0 holds none out; None: `VAL_FRACTION`.
        val_documents: number of documents to hold out, instead of the fraction.
        seed: chooses which documents are held out.
        executor: what runs the tasks: `local` processes, `slurm` or `ray`; the latter two need a
            file system that all machines share.
        executor_options: of `slurm`, those of sbatch; of `ray`, `memory-gb` for each task.
        workers: tasks at once; a file is read by one. None: one if local, else no limit.
        limit_documents: read only so many documents.
        document_separator: text between two documents of one text file; None: a file is one.
        eos_token: the tokenizer's end-of-text token, where it doesn't say.
        hub_config: configuration of the Hub data set.
        hub_split: split of the Hub data set; None: `train`.
        overwrite: replace an existing token folder, once the new one is complete.
        progress: called with one line now and then.
        notice: called with one line for what the user should know of.

    Returns:
        What meta.json says.

    Raises:
        ConfigError: an argument is out of range, or has no effect beside the others.
        DataError: the corpus, the tokenizer or the output folder can't be used.
        ResourceError: the disk is full, or a process was killed; the same call goes on.
    """
    report = progress or (lambda line: None)
    _check_range("vocab_size", vocab_size, MIN_VOCAB_SIZE, MAX_VOCAB_SIZE)
    check_tokenizer_options(tokenizer, vocab_size, eos_token)
    check_val_size(val_fraction, val_documents)
    _check_range("seed", seed, 0, MAX_SEED)
    _check_range("limit_documents", limit_documents, 1)
    if document_separator == "":
        raise ConfigError("document_separator is empty text; leave it out, or name what cuts")
    place = Path(os.path.realpath(output))  # a link may lead to a folder that isn't there yet
    target = check_free(place, META_FILE, overwrite, DataError, source)
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
    for line in corpus.notices():
        notice(line)
    with (
        closing(choose_executor(executor, workers, executor_options or {}, notice)) as runner,
        new_folder(target, META_FILE, overwrite, key=key, error_class=DataError) as folder,
    ):
        job = _Job(corpus, folder, seed, runner, report)
        keys = _read_keys(job)
        threshold = val_threshold(keys, val_fraction, val_documents, corpus.source)
        train = partial(train_on, corpus, seed, threshold, vocab_size, report)
        make = train if given is None else lambda: given
        described = put_tokenizer(folder, job.work, make, notice)
        step = _write_shards(job, described, threshold)
        splits = _count_splits(job, step, keys)
        uncertain = step.records.totals(corpus.tasks)["uncertain"]
        if uncertain:
            notice(
                f"{corpus.source}: texts without a place where this tokenizer surely cuts were cut "
                f"at {uncertain:,} places, where tokens may differ from the whole text's"
            )
        files = step.records.files(corpus.tasks) | tokenizer_files(folder)
        remove(folder / name for name in strangers(folder, files))
        TokenMeta(
            tokenizer=described,
            splits=splits,
            source=corpus.source,
            seed=seed,
            token_bytes=step.token_bytes,
            settings=settings,
            versions=found,
            files=files,
        ).save(folder)
    return TokenMeta.load(target)


@dataclass(frozen=True)
class _Job:
    """What every stage needs: the corpus, the folder to fill, and how to go about it."""

    corpus: Corpus
    folder: Path
    seed: int
    executor: Executor
    report: Progress

    @property
    def work(self) -> Path:
        """Where records lie: beside the folder to fill, and so never published with it."""
        return self.folder.parent

    @property
    def key_records(self) -> TaskRecords:
        """The finished tasks of the first stage."""
        return TaskRecords(self.work / "read", self.work / "keys")


def _read_keys(job: _Job) -> np.ndarray:
    """Look at every document once: all bad input shows here, before anything expensive."""

    def on_progress(state: str) -> None:
        job.report(f"reading the corpus: {state}")

    step = DocumentKeys(job.key_records, job.seed)
    run_stage(job.corpus, step, job.executor, on_progress)
    return step.keys(job.corpus.tasks)


def _write_shards(job: _Job, tokenizer: TokenizerMeta, threshold: int | None) -> SplitTokenizer:
    """Tokenize both splits into shards; returns the step that did.

    Raises:
        ResourceError: the disk is full, among others; says about how much the rest takes.
    """
    token_bytes: TokenBytes = 2 if tokenizer.vocab_size <= 2**16 else 4
    records = TaskRecords(job.work / tokenizer.sha256[:10], job.folder)
    file = job.folder / TOKENIZER_FOLDER / "tokenizer.json"
    eos = tokenizer.eos_token_id
    step = SplitTokenizer(records, file, eos, token_bytes, job.seed, threshold)

    def on_progress(state: str) -> None:
        size = sum(path.stat().st_size for path in job.folder.glob("*/*.ds"))
        job.report(f"tokenizing: {size / token_bytes / 1e6:.1f}M tokens, {state}")

    try:
        with writing(job.folder, DataError):
            run_stage(job.corpus, step, job.executor, on_progress)
    except ResourceError as error:
        done, text = records.totals(job.corpus.tasks), job.key_records.totals(job.corpus.tasks)
        size, tokens = (sum(done.get(f"{s}/{u}", 0) for s in (TRAIN, VAL)) for u in _UNITS[1:])
        share = tokens / size if size else 1.0  # tokens per byte; at most one, before we know
        missing = size_text(round((text["bytes"] - size) * share * token_bytes))
        about = "about" if size else "at most"
        raise ResourceError(f"{error}; the rest of the tokens takes {about} {missing}") from error
    return step


def _count_splits(job: _Job, step: SplitTokenizer, keys: np.ndarray) -> dict[str, SplitMeta]:
    """The size of each split, summed over what each task recorded.

    Raises:
        DataError: they aren't the documents that were looked at before.
    """
    held_out = 0 if step.threshold is None else int((keys <= np.uint64(step.threshold)).sum())
    expected = {TRAIN: len(keys) - held_out} | ({VAL: held_out} if held_out else {})
    totals = step.records.totals(job.corpus.tasks)
    found = {name: totals[f"{name}/documents"] for name in expected}
    if found != expected:
        raise DataError(
            f"{job.corpus.source}: changed while it was read, from {expected} to {found} "
            "documents; run the same command again"
        )
    return {
        name: SplitMeta(**{unit: totals[f"{name}/{unit}"] for unit in _UNITS}) for name in expected
    }


def _check_range(name: str, value: int | None, low: int, high: int = 2**63 - 1) -> None:
    if value is not None and not low <= value <= high:
        bound = f"at least {low}" if value < low else f"at most {high}"
        raise ConfigError(f"{name}={value} must be {bound}")


def _digest(*parts: Any) -> str:
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:10]
