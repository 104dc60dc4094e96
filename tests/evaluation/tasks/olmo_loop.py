"""ai2-olmo-eval's own way: its data set, its padding, its metric. Slow, and the truth here."""

from dataclasses import dataclass
from typing import Any

import torch

from versatileffn.models.mode import evaluating


@dataclass(frozen=True)
class OlmoAnswers:
    """What ai2-olmo-eval's metric collects.

    Args:
        log_likelihoods: for each item, each choice's value: nats for `acc`, nats per character
            (leading space included) for `len_norm`.
        without_leading_space: the same, the leading space not counted.
        score: its metric's own score.
    """

    log_likelihoods: dict[int, list[float]]
    without_leading_space: dict[int, list[float]]
    score: float

    def predictions(self, leading_space: bool = True) -> dict[int, int]:
        """The choice of each item."""
        values = self.log_likelihoods if leading_space else self.without_leading_space
        return {item: int(torch.tensor(found).argmax()) for item, found in values.items()}


def olmo_loop(model: Any, dataset: Any, batch_size: int = 32) -> OlmoAnswers:
    """Evaluate as ai2-olmo-eval is meant to be used.

    Batches in the data's order, padded to a multiple of 128 tokens; the context is computed anew
    for each choice, and logits for every position.

    Args:
        model: a causal language model.
        dataset: of `requests.olmo_dataset`.
        batch_size: requests at once.
    """
    from olmo_eval import ICLMetric

    metric = ICLMetric(metric_type=dataset.metric_type)
    device = next(model.parameters()).device
    with evaluating(model):
        for start in range(0, len(dataset), batch_size):
            stop = min(start + batch_size, len(dataset))
            batch = dataset.collate_fn([dataset[index] for index in range(start, stop)])
            batch = {name: tensor.to(device) for name, tensor in batch.items()}
            metric.update(batch, lm_logits=model(input_ids=batch["input_ids"]).logits)
    score = float(metric.compute()[f"{dataset.metric_type}_v1"])
    return OlmoAnswers(
        _by_item(metric.loglikelihoods), _by_item(metric.loglikelihoods_no_leading_space), score
    )


def _by_item(found: list[tuple[int, int, float]]) -> dict[int, list[float]]:
    items: dict[int, list[float]] = {}
    for item, choice, value in found:
        assert choice == len(items.setdefault(item, []))
        items[item].append(value)
    return items
