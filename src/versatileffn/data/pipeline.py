"""The two stages over a corpus: look at every document, then tokenize it."""

import io
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack
from datetime import timedelta
from functools import cached_property, partial
from itertools import chain, islice
from pathlib import Path
from typing import Protocol

import numpy as np
from tokenizers import Tokenizer

from versatileffn.data.corpus import Corpus
from versatileffn.data.long_text import WINDOW, LongTextEncoder
from versatileffn.data.meta import TokenBytes
from versatileffn.data.shards import Shard, TaskRecords
from versatileffn.data.split import TRAIN, VAL, document_key, split_of, utf8_size
from versatileffn.data.stage import Executor, Stage
from versatileffn.workspace.durable import write_bytes
from versatileffn.workspace.manifest import sha256

Progress = Callable[[str], None]
_BATCH_DOCUMENTS = 1000
_BATCH_CHARACTERS = 2**20


class LastStep(Protocol):
    """What consumes a task's documents, writes files, and then the task's record."""

    records: TaskRecords

    def run(self, texts: Iterator[str], rank: int) -> None:
        """Consume the documents of one task."""


class DocumentKeys:
    """Write the keys of a task's documents, in their order, to `rank`.npy.

    Args:
        records: their root is where to write.
        seed: seed of the held-out split.
    """

    def __init__(self, records: TaskRecords, seed: int) -> None:
        self.records, self.seed = records, seed

    def run(self, texts: Iterator[str], rank: int) -> None:
        """Consume the documents."""
        keys, size = [], 0
        for text in texts:
            keys.append(document_key(text, self.seed))
            size += utf8_size(text)
        content = io.BytesIO()
        np.save(content, np.array(keys, np.uint64))
        path = self.records.root / f"{rank:05d}.npy"
        path.parent.mkdir(parents=True, exist_ok=True)
        write_bytes(path, content.getvalue())
        self.records.save(rank, {path.name: sha256(path)}, {"bytes": size})

    def keys(self, tasks: int) -> np.ndarray:
        """All keys, uint64 of shape (documents,)."""
        return np.concatenate([np.load(self.records.root / f"{r:05d}.npy") for r in range(tasks)])


class SplitTokenizer:
    """Tokenize a task's documents into one shard for each split, `split`/`rank`.ds.

    A document that spells out a special token gets its characters, not the token: only real ends
    of documents carry the end of text.

    Args:
        records: their root is the token folder.
        tokenizer_file: a tokenizer.json.
        eos_token_id: the token after each document.
        token_bytes: width of a stored token.
        seed: seed of the held-out split.
        threshold: the largest key that is held out; None holds nothing out.
    """

    def __init__(
        self,
        records: TaskRecords,
        tokenizer_file: Path,
        eos_token_id: int,
        token_bytes: TokenBytes,
        seed: int,
        threshold: int | None,
    ) -> None:
        self.records = records
        self.tokenizer_file, self.eos_token_id = tokenizer_file, eos_token_id
        self.token_bytes: TokenBytes = token_bytes
        self.seed, self.threshold = seed, threshold

    @cached_property
    def encoder(self) -> LongTextEncoder:
        """The tokenizer, for texts of any length."""
        tokenizer = Tokenizer.from_file(str(self.tokenizer_file))
        tokenizer.encode_special_tokens = True
        return LongTextEncoder(tokenizer)

    def run(self, texts: Iterator[str], rank: int) -> None:
        """Consume the documents."""
        self.encoder.uncertain = 0
        with ExitStack() as stack:
            shards = {
                split: stack.enter_context(
                    Shard(self.records.root, f"{split}/{rank:05d}.ds", self.token_bytes)
                )
                for split in ([TRAIN] if self.threshold is None else [TRAIN, VAL])
            }
            for text, pieces in self._encoded(texts):
                shard = shards[split_of(text, self.seed, self.threshold)]
                for ids in pieces:
                    shard.add(ids)
                shard.add([self.eos_token_id])
                shard.end_document(utf8_size(text))
            files = {name: digest for s in shards.values() for name, digest in s.finish().items()}
        counts = {
            f"{split}/{unit}": getattr(shard, unit)
            for split, shard in shards.items()
            for unit in ("documents", "tokens", "bytes")
        }
        self.records.save(rank, files, counts | {"uncertain": self.encoder.uncertain})

    def _encoded(self, documents: Iterable[str]) -> Iterator[tuple[str, Iterable[list[int]]]]:
        """Each text with the pieces of its tokens: short texts together, long ones in windows."""
        for texts in _batches(documents):
            if len(texts[0]) > WINDOW:
                yield texts[0], self.encoder.pieces(texts[0])
                continue
            tokenizer = self.encoder.tokenizer
            encodings = tokenizer.encode_batch_fast(texts, add_special_tokens=False)
            yield from ((text, [e.ids]) for text, e in zip(texts, encodings, strict=True))


def run_stage(corpus: Corpus, last: LastStep, executor: Executor, on_progress: Progress) -> None:
    """Run one stage over all tasks, those that an interrupted run has finished excepted.

    Args:
        corpus: what to read.
        last: the step that consumes the documents.
        executor: what runs the tasks.
        on_progress: called after each task with those done and an estimate of the time left.
    """
    ranks = [rank for rank in range(corpus.tasks) if not last.records.finished(rank)]
    done, began = 0, time.monotonic()

    def report() -> None:
        nonlocal done
        done += 1
        # Tasks are alike enough for that: each reads about as many bytes as any other.
        left = timedelta(seconds=round((time.monotonic() - began) * (len(ranks) / done - 1)))
        state = f"{corpus.tasks - len(ranks) + done}/{corpus.tasks} tasks"
        on_progress(f"{state}, about {left} left")

    on_progress(f"{corpus.tasks - len(ranks)}/{corpus.tasks} tasks")
    if ranks:
        executor.run(Stage(partial(_run_task, corpus, last), last.records), ranks, report)


def _run_task(corpus: Corpus, last: LastStep, rank: int) -> None:
    texts = chain.from_iterable(reader.run(rank, corpus.tasks) for reader in corpus.readers)
    last.run(islice(texts, corpus.limit), rank)


def _batches(texts: Iterable[str]) -> Iterator[list[str]]:
    """Texts, with bounded numbers of documents and characters; a long text is by itself."""
    batch: list[str] = []
    characters = 0
    for text in texts:
        long = len(text) > WINDOW
        full = len(batch) == _BATCH_DOCUMENTS or characters >= _BATCH_CHARACTERS
        if batch and (long or full):
            yield batch
            batch, characters = [], 0
        if long:
            yield [text]
        else:
            batch.append(text)
            characters += len(text)
    if batch:
        yield batch
