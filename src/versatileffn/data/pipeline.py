"""The two datatrove stages over a corpus: look at every document, then tokenize it."""

import json
import os
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from functools import cached_property
from itertools import islice
from pathlib import Path
from typing import Any

import multiprocess
import numpy as np
from datatrove.data import Document
from datatrove.executor import LocalPipelineExecutor
from datatrove.pipeline.base import PipelineStep
from datatrove.pipeline.tokens.tokenizer import DocumentTokenizer, TokenizedFile
from loguru import logger
from tokenizers import Tokenizer

from versatileffn.data.corpus import Corpus
from versatileffn.data.split import TRAIN, VAL, document_key, split_of

Progress = Callable[[str], None]
_BATCH_DOCUMENTS = 1000
_BATCH_CHARACTERS = 8 * 2**20


class Limit(PipelineStep):
    """Pass on the first `limit` documents of a task.

    Args:
        limit: how many; None means all.
    """

    name = "✂️ Limit"
    type = "🔻 - FILTER"

    def __init__(self, limit: int | None) -> None:
        super().__init__()
        self.limit = limit

    def run(
        self, data: Iterator[Document], rank: int = 0, world_size: int = 1
    ) -> Iterator[Document]:
        """Yield the documents."""
        yield from islice(data, self.limit)


class DocumentKeys(PipelineStep):
    """Write the key of every document of a task to `folder`/`rank`.npy.

    Args:
        folder: where to write.
        seed: seed of the held-out split.
    """

    name = "🔑 Keys"
    type = "🔢 - SPLIT"

    def __init__(self, folder: Path, seed: int) -> None:
        super().__init__()
        self.folder, self.seed = folder, seed

    def run(self, data: Iterator[Document], rank: int = 0, world_size: int = 1) -> None:
        """Consume the documents."""
        keys = np.fromiter((document_key(d.text, self.seed) for d in data), np.uint64)
        self.folder.mkdir(parents=True, exist_ok=True)
        np.save(self.folder / f"{rank:05d}.npy", keys)


class SplitTokenizer(DocumentTokenizer):
    """datatrove's DocumentTokenizer with one output file for each split.

    A document that spells out a special token gets its characters, not the token: only real ends
    of documents carry the end of text.

    Args:
        output_folder: shards go to `output_folder`/`split`/`rank`.ds.
        tokenizer_file: a tokenizer.json.
        eos_token: the token after each document.
        token_bytes: width of a stored token.
        seed: seed of the held-out split.
        threshold: the largest key that is held out; None holds nothing out.
    """

    def __init__(
        self,
        output_folder: Path,
        tokenizer_file: Path,
        eos_token: str,
        token_bytes: int,
        seed: int,
        threshold: int | None,
    ) -> None:
        super().__init__(
            str(output_folder),
            str(tokenizer_file),
            eos_token=eos_token,
            shuffle_documents=False,
            save_final_metadata=False,
        )
        self.token_size = token_bytes
        self.seed, self.threshold = seed, threshold

    @cached_property
    def tokenizer(self) -> Tokenizer:
        """The tokenizer, with the end of text after each document."""
        tokenizer = super().tokenizer
        tokenizer.no_truncation()
        tokenizer.no_padding()
        tokenizer.encode_special_tokens = True
        return tokenizer

    def run(self, data: Iterator[Document], rank: int = 0, world_size: int = 1) -> None:
        """Consume the documents."""
        splits = [TRAIN] if self.threshold is None else [TRAIN, VAL]
        files = {
            split: TokenizedFile(
                self.output_folder, f"{split}/{rank:05d}.ds", token_size=self.token_size
            )
            for split in splits
        }
        for batch in _batches(data):
            texts = [document.text for document in batch]
            for text, encoded in zip(texts, self.tokenizer.encode_batch_fast(texts), strict=True):
                split = split_of(text, self.seed, self.threshold)
                files[split].write(encoded.ids, None)
                self.stat_update(f"{split}/documents")
                self.stat_update(f"{split}/tokens", value=len(encoded.ids))
                self.stat_update(f"{split}/bytes", value=len(text.encode("utf-8")))
        for file in files.values():
            file.close()


def run_stage(
    corpus: Corpus,
    last: PipelineStep,
    folder: Path,
    workers: int,
    on_progress: Progress,
) -> dict[str, int]:
    """Run one stage over all tasks, those that an interrupted run has finished excepted.

    Args:
        corpus: what to read.
        last: the step that consumes the documents.
        folder: datatrove's records of what is done.
        workers: processes.
        on_progress: called twice a second with the tasks done and an estimate of the time left.

    Returns:
        The total of each number that `last` has counted.
    """
    executor = LocalPipelineExecutor(
        [*corpus.readers, Limit(corpus.limit), last],
        tasks=corpus.tasks,
        workers=max(1, min(workers, corpus.tasks)),
        logging_dir=str(folder),
    )
    with _quiet(), _prepared(executor.workers), _watching(folder, corpus.tasks, on_progress):
        executor.run()
    totals: dict[str, int] = {}
    for path in sorted((folder / "stats").glob("*.json")):
        steps: list[dict[str, Any]] = json.loads(path.read_text())
        for name, value in steps[-1]["stats"].items():
            total = value["total"] if isinstance(value, dict) else value
            totals[name] = totals.get(name, 0) + int(total)
    return totals


def _batches(documents: Iterable[Document]) -> Iterator[list[Document]]:
    """Batches with a bounded number of documents and of characters."""
    batch: list[Document] = []
    characters = 0
    for document in documents:
        batch.append(document)
        characters += len(document.text)
        if len(batch) == _BATCH_DOCUMENTS or characters >= _BATCH_CHARACTERS:
            yield batch
            batch, characters = [], 0
    if batch:
        yield batch


@contextmanager
def _quiet() -> Iterator[None]:
    """Silence datatrove's own log in this process (`_QuietStep` does so in the workers)."""
    logger.disable("datatrove")
    try:
        yield
    finally:
        logger.enable("datatrove")


@contextmanager
def _prepared(workers: int) -> Iterator[None]:
    """Set up what workers inherit.

    They are forked from a server that has imported this module once. The cores are shared between
    them: `tokenizers` would start a thread per core in each.
    """
    name = "RAYON_NUM_THREADS"
    if workers == 1:
        yield
        return
    multiprocess.set_forkserver_preload([__name__])
    before = os.environ.get(name)
    os.environ[name] = before or str(max(1, (os.cpu_count() or 1) // workers))
    try:
        yield
    finally:
        if before is None:
            del os.environ[name]


@contextmanager
def _watching(folder: Path, tasks: int, on_progress: Progress) -> Iterator[None]:
    """Report, at once and then twice a second, the tasks done and the time left.

    Tasks are alike enough for that: each reads about as many bytes as any other.
    """
    stop = threading.Event()
    finished = folder / "completions"
    began, done_before = time.monotonic(), len(list(finished.glob("*")))

    def watch() -> None:
        while True:
            done = len(list(finished.glob("*")))
            state = f"{done}/{tasks} tasks"
            if done > done_before:
                seconds = (time.monotonic() - began) * (tasks - done) / (done - done_before)
                state += f", about {timedelta(seconds=round(seconds))} left"
            on_progress(state)
            if stop.wait(0.5):
                return

    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()
