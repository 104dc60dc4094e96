"""Requests per second: `versatileffn evaluate` against ai2-olmo-eval's own padded loop.

Both sides take the same model, the same items and the same machine, in one process, in turn; their
predictions are compared before any number is written (in float32 they must be equal). The whole
evaluation's ratio weighs each task by its full number of requests.

    python benchmarks/evaluation_speed.py MODEL --items 32 --out evaluation_speed.json
"""

import argparse
import shlex
import statistics
import sys
import time
from pathlib import Path
from typing import Any

import torch

import versatileffn  # noqa: F401 - registers our models with the Auto classes
from versatileffn.evaluation.tasks.catalogue import PAPER8, Task, find_tasks
from versatileffn.evaluation.tasks.loading import Subject, context_length, load_subject
from versatileffn.evaluation.tasks.metrics import metric_name
from versatileffn.evaluation.tasks.records import Record
from versatileffn.evaluation.tasks.reference import OlmoAnswers, olmo_loop
from versatileffn.evaluation.tasks.requests import Item, build_items, olmo_dataset
from versatileffn.evaluation.tasks.run import default_batch_tokens, describe
from versatileffn.evaluation.tasks.scoring import Scorer
from versatileffn.evaluation.tasks.tokenizer import RequestTokenizer
from versatileffn.provenance import source_digest
from versatileffn.workspace.durable import write_json

OLMO_CONTEXT = 2048
"""Tokens; ai2-olmo-eval's default, where the model takes as many."""


def main() -> None:
    """Parse, measure, print, write."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("model", help="folder, hub id or .gguf file")
    parser.add_argument("--tasks", default="paper8")
    parser.add_argument("--items", type=int, default=32, help="items of each task")
    parser.add_argument("--repeats", type=int, default=3, help="measurements, in turn")
    parser.add_argument("--batch-size", type=int, default=32, help="requests in a padded batch")
    parser.add_argument("--batch-tokens", type=int, help="tokens in one of our batches")
    parser.add_argument("--bf16", action="store_true", help="both sides in bfloat16")
    parser.add_argument("--onednn", action="store_true", help="our products by oneDNN")
    parser.add_argument("--tokenizer")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--out", type=Path)
    given = parser.parse_args()

    dtype = torch.bfloat16 if given.bf16 else torch.float32
    subject = load_subject(given.model, dtype, given.device, given.tokenizer)
    rows = {}
    for task in find_tasks(given.tasks):
        rows[task.label] = measure(subject, task, given)
        print(f"{task.label:>14}  {rows[task.label]}", flush=True)
    summary = summarize(rows)
    print(summary)
    if summary["differing_predictions"] and not given.bf16:
        sys.exit("error: predictions differ, so the rates aren't comparable; nothing was written")
    if given.out is not None:
        context = context_length(subject.model)
        content = {
            "command": command(given.model),
            "model": Path(given.model).name,
            **describe(subject, RequestTokenizer(subject.tokenizer), context),
            "sources_sha256": source_digest(),
            "threads": torch.get_num_threads(),
            "items_per_task": given.items,
            "repeats": given.repeats,
            "batch_size_olmo": given.batch_size,
            "batch_tokens_ours": given.batch_tokens or default_batch_tokens(subject.model),
            "tasks": rows,
            "all": summary,
        }
        write_json(given.out, content)


def command(model: str) -> str:
    """What was typed, with the model's name for its place on this machine."""
    arguments = [Path(model).name if word == model else word for word in sys.argv[1:]]
    return shlex.join(["python", "benchmarks/evaluation_speed.py", *arguments])


def measure(subject: Subject, task: Task, given: argparse.Namespace) -> dict[str, Any]:
    """Both sides on one task."""
    words = RequestTokenizer(subject.tokenizer)
    context = min(OLMO_CONTEXT, context_length(subject.model))
    dataset = olmo_dataset(task, words, context, given.items)
    items = build_items(task, words, context, given.items)
    batch_tokens = given.batch_tokens or default_batch_tokens(subject.model)
    scorer = Scorer(subject.model, batch_tokens, onednn=given.onednn)
    scorer.choose(items)
    list(scorer.score(items[:1]))  # warms up
    requests = sum(len(item.requests) for item in items)

    theirs, ours = [], []
    for _ in range(given.repeats):
        seconds, answers = timed(lambda: olmo_loop(subject.model, dataset, given.batch_size))
        theirs.append(requests / seconds)
        seconds, scored = timed(lambda: list(scorer.score(items)))
        ours.append(requests / seconds)
        differing = count_differences(task, answers, scored)
    ratios = [our / their for our, their in zip(ours, theirs, strict=True)]
    return {
        "requests": requests,
        "requests_in_full_about": round(requests / len(items) * task.items),
        "differing_predictions": differing,
        "predictions": 2 * len(items),
        "olmo_requests_per_second": statistics.median(theirs),
        "our_requests_per_second": statistics.median(ours),
        "ratio": statistics.median(ratios),
        "scoring": str(scorer.mode),
        "onednn": scorer.onednn,
    }


def timed(run: Any) -> tuple[float, Any]:
    """Seconds, and what came out."""
    synchronize()
    began = time.perf_counter()
    found = run()
    synchronize()
    return time.perf_counter() - began, found


def synchronize() -> None:
    """Wait for the device."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def count_differences(
    task: Task, answers: OlmoAnswers, scored: list[tuple[Item, list[float]]]
) -> int:
    """How many predictions differ, both ways to count the leading space taken together."""
    records = [Record.of(item, log_likelihoods, "") for item, log_likelihoods in scored]
    with_space, without = answers.predictions(True), answers.predictions(False)
    return sum(
        (record.predictions[metric_name(task, "olmo_eval")] != with_space[record.index])
        + (record.predictions[metric_name(task, "paper")] != without[record.index])
        for record in records
    )


def summarize(rows: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """The ratio for full tasks, from each task's measured rates."""
    requests = sum(row["requests_in_full_about"] for row in rows.values())
    seconds = {
        side: sum(row["requests_in_full_about"] / row[side] for row in rows.values())
        for side in ("olmo_requests_per_second", "our_requests_per_second")
    }
    theirs, ours = seconds.values()
    return {
        "requests_in_full_about": requests,
        "olmo_seconds_in_full": theirs,
        "our_seconds_in_full": ours,
        "olmo_requests_per_second": requests / theirs,
        "our_requests_per_second": requests / ours,
        "ratio": theirs / ours,
        "mean_ratio_over_tasks": statistics.fmean(row["ratio"] for row in rows.values()),
        "differing_predictions": sum(row["differing_predictions"] for row in rows.values()),
        "complete": len(rows) == len(PAPER8),
    }


if __name__ == "__main__":
    main()
