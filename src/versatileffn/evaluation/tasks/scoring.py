"""Log-likelihoods, fast: shared prefixes once, and the vocabulary only where something is asked.

| mode       | attention                     | vocabulary projection            |
|------------|-------------------------------|----------------------------------|
| tree       | an item's tree in one row     | the nodes that predict           |
| tree-full  | an item's tree in one row     | the model's own, every position  |
| rows       | a row for each request        | the positions that predict       |
| rows-full  | a row for each request        | the model's own, every position  |

Not every architecture takes a mask of its own (sliding windows, ALiBi, recurrences), and some do
more to their logits than a projection (soft caps, scales). So the item with the most tokens, and
one of middling length, are also scored the plain way, one request after the other without padding,
and the first mode of the table that gives the same for both is used.

Legend: B rows, T nodes, D hidden size, P nodes that predict, R targets, V vocabulary.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from versatileffn.errors import CheckpointError, DataError
from versatileffn.evaluation.tasks.products import fast_products, onednn_is_faster
from versatileffn.evaluation.tasks.requests import Item
from versatileffn.evaluation.tasks.tree import Batch, Planned, collate, plan_item
from versatileffn.models.mode import evaluating

LOGITS_AT_ONCE = {"cpu": 2**22, "cuda": 2**27}
"""Numbers in a block of logits, by type of device: small enough for caches or memory, large enough
for an efficient product."""

LEAST_FILLED = 0.8
"""A row that a batch would fill up by less than this begins the next one, if the batch is of some
size."""

TOLERANCE = {torch.float64: 1e-9, torch.float32: 2e-5, torch.float16: 5e-3, torch.bfloat16: 3e-2}
"""How far a mode may be from the plain way, as a part of the log-likelihood (at least 1 nat)."""


@dataclass(frozen=True)
class Mode:
    """How requests become rows, and hidden states become logits; see the table above."""

    share: bool
    select: bool

    def __str__(self) -> str:
        return ("tree" if self.share else "rows") + ("" if self.select else "-full")


MODES = tuple(Mode(share, select) for share in (True, False) for select in (True, False))


class Scorer:
    """Scores items with one model.

    Args:
        model: a causal language model of Transformers; its dtype is the precision, or autocast's
            where that is on.
        batch_tokens: tokens in one forward pass, padding included, except where one item has more.
        mode: how; None finds the first that agrees with the plain way on one item.
    """

    def __init__(self, model: Any, batch_tokens: int, mode: Mode | None = None) -> None:
        self.model = model
        self.batch_tokens = batch_tokens
        self.mode = mode
        self.note: str | None = None
        weights = next(p for p in model.parameters() if p.is_floating_point())
        self.device = weights.device
        autocast = torch.is_autocast_enabled(self.device.type)
        self.dtype = torch.get_autocast_dtype(self.device.type) if autocast else weights.dtype
        self.onednn = not autocast and onednn_is_faster(model)

    def score(self, items: list[Item]) -> Iterator[tuple[Item, list[float]]]:
        """Score items, those with most tokens first.

        Args:
            items: in any order.

        Yields:
            an item and the log-likelihood of each of its requests (nats), as soon as it is known.

        Raises:
            CheckpointError: a log-likelihood isn't a finite number.
            DataError: a token has no place in the model's vocabulary.
        """
        if not items:
            return
        self._check_vocabulary(items)
        if self.mode is None:
            with evaluating(self.model):
                self.mode, self.note = self._choose(items)
        for plans in self._batches(items, self.mode):
            # not around the yield: its caller's modes are its own
            with evaluating(self.model), fast_products(self.onednn):
                scored = self._score_batch(plans, self.mode)
            yield from scored

    def _check_vocabulary(self, items: list[Item]) -> None:
        largest = max(max((*r.query, *r.targets)) for item in items for r in item.requests)
        size = self.model.get_input_embeddings().weight.shape[0]
        if largest >= size:
            raise DataError(
                f"the tokenizer makes token {largest}, and the model knows only {size} tokens: "
                "use the tokenizer it was trained with"
            )

    def _batches(self, items: list[Item], mode: Mode) -> Iterator[list[Planned]]:
        """Whole items, longest first, so that rows of a batch hardly differ in length."""
        planned = [plan_item(item, mode.share) for item in items]
        planned.sort(key=lambda plans: max(len(plan.tree) for plan in plans), reverse=True)
        batch: list[Planned] = []
        width = 0
        for plans in planned:
            longest = max(len(plan.tree) for plan in plans)
            full = (len(batch) + len(plans)) * max(width, longest) > self.batch_tokens
            mostly_padding = longest < width * LEAST_FILLED
            large_enough = len(batch) * width * 4 >= self.batch_tokens
            if batch and (full or (mostly_padding and large_enough)):
                yield batch
                batch, width = [], 0
            batch = batch + plans
            width = max(width, longest)
        yield batch

    def _score_batch(self, plans: list[Planned], mode: Mode) -> list[tuple[Item, list[float]]]:
        batch = collate(plans, mode.share)
        sums = self._log_likelihoods(batch, mode)
        found: dict[int, tuple[Item, list[float]]] = {}
        position = 0
        for plan in plans:
            _, scores = found.setdefault(id(plan.item), (plan.item, []))
            scores.extend(sums[position : position + len(plan.choices)])
            position += len(plan.choices)
        for item, scores in found.values():
            _check_finite(item, scores)
        return list(found.values())

    def _log_likelihoods(self, batch: Batch, mode: Mode) -> list[float]:
        """The sum over each request's targets, in nats."""
        states_XD = self._forward(batch, mode)
        if not sum(batch.counts):
            return [0.0] * len(batch.counts)
        flat_P = batch.predicting_P.to(self.device)
        source_R, order_R = batch.source_R.sort(stable=True)
        source_R = source_R.to(self.device)
        target_R = batch.target_R[order_R].to(self.device)
        head = self.model.get_output_embeddings() if mode.select else None
        vocabulary = states_XD.shape[-1] if head is None else head.weight.shape[0]
        at_once = LOGITS_AT_ONCE.get(self.device.type, LOGITS_AT_ONCE["cpu"])
        step = max(1, at_once // vocabulary)
        edges = torch.arange(0, len(flat_P) + step, step, device=self.device)
        cuts = torch.searchsorted(source_R, edges).tolist()
        pieces: list[Tensor] = []
        for block, (low, high) in enumerate(pairwise(cuts)):
            rows_PX = states_XD[flat_P[block * step : (block + 1) * step]]
            logits_PV = rows_PX if head is None else head(rows_PX)
            logits_PV = logits_PV.to(torch.promote_types(logits_PV.dtype, torch.float32))
            place_R = source_R[low:high] - block * step
            chosen_R = logits_PV[place_R, target_R[low:high]]
            pieces.append(torch.stack([chosen_R, _logsumexp_in_place(logits_PV)[place_R]]))
        chosen_R, norms_R = torch.cat(pieces, dim=1).cpu().double()
        log_probs_R = torch.empty_like(chosen_R)
        log_probs_R[order_R] = chosen_R - norms_R
        return [float(part.sum()) for part in log_probs_R.split(batch.counts)]

    def _forward(self, batch: Batch, mode: Mode) -> Tensor:
        """Hidden states, or logits where the model must make them itself; [B·T, D or V]."""
        inputs: dict[str, Any] = {"input_ids": batch.input_ids_BT.to(self.device)}
        if batch.sees_BTT is None:
            inputs["attention_mask"] = batch.real_BT.to(self.device, torch.int64)
        else:
            inputs["position_ids"] = batch.position_ids_BT.to(self.device)
            hidden_BTT = ~batch.sees_BTT.to(self.device)
            mask_BTT = torch.zeros(hidden_BTT.shape, dtype=self.dtype, device=self.device)
            mask_BTT.masked_fill_(hidden_BTT, torch.finfo(self.dtype).min)
            inputs["attention_mask"] = mask_BTT[:, None]
        if mode.select:
            states_BTX = self.model.base_model(**inputs, use_cache=False).last_hidden_state
        else:
            states_BTX = self.model(**inputs, use_cache=False).logits
        return states_BTX.flatten(0, 1)

    def _choose(self, items: list[Item]) -> tuple[Mode, str | None]:
        """The fastest mode that agrees with the plain way on the largest item and a usual one."""
        by_size = sorted(items, key=lambda item: len(plan_item(item, share=True)[0].tree))
        probes = [by_size[-1], by_size[len(by_size) // 2]]
        expected = [self.plain(item) for item in probes]
        for item, scores in zip(probes, expected, strict=True):
            _check_finite(item, scores)
        window = sliding_window(self.model.config)
        longest = max(len(r.query) for one in items for r in one.requests)
        for mode in MODES:
            if mode.share and window is not None and longest > window:
                continue  # a mask of our own would replace the model's window
            try:
                with fast_products(self.onednn):
                    found = [self._log_likelihoods(_alone(item, mode), mode) for item in probes]
            except (AttributeError, TypeError, ValueError, RuntimeError):
                continue  # this architecture doesn't take such inputs
            if all(_agree(f, e, self.dtype) for f, e in zip(found, expected, strict=True)):
                return mode, None
        note = "no mode gives what single requests give; the numbers depend on how rows are batched"
        return MODES[-1], note

    def plain(self, item: Item) -> list[float]:
        """Log-likelihoods one request after the other, without padding or sharing, in nats."""
        sums = []
        for request in item.requests:
            ids_1T = torch.tensor([request.query], device=self.device)
            logits_TV = self.model(input_ids=ids_1T).logits[0, request.first :]
            logits_TV = logits_TV.to(torch.promote_types(logits_TV.dtype, torch.float32))
            target_T = torch.tensor(request.targets, dtype=torch.int64, device=self.device)
            log_probs_TV = logits_TV.log_softmax(dim=-1)
            chosen_T = log_probs_TV.gather(1, target_T[:, None])
            sums.append(float(chosen_T.double().sum()))
        return sums


def _alone(item: Item, mode: Mode) -> Batch:
    return collate(plan_item(item, mode.share), mode.share)


def _logsumexp_in_place(logits_PV: Tensor) -> Tensor:
    """log Σ exp over the vocabulary, [P]; the logits are lost, and no second block is needed."""
    largest_P1 = logits_PV.amax(dim=-1, keepdim=True)
    return logits_PV.sub_(largest_P1).exp_().sum(dim=-1).log_() + largest_P1[:, 0]


def _agree(found: list[float], expected: list[float], dtype: torch.dtype) -> bool:
    """Whether two ways to compute log-likelihoods (nats) differ by no more than rounding."""
    tolerance = TOLERANCE.get(dtype, TOLERANCE[torch.float32])
    return all(
        abs(f - e) <= tolerance * max(1.0, abs(e)) for f, e in zip(found, expected, strict=True)
    )


def sliding_window(config: Any) -> int | None:
    """How far a model's layers look back where that is limited, in tokens; None where it isn't."""
    text = config.get_text_config()
    limits = [getattr(text, name, None) for name in ("sliding_window", "attention_chunk_size")]
    return min((limit for limit in limits if isinstance(limit, int)), default=None)


def _check_finite(item: Item, scores: list[float]) -> None:
    for choice, score in enumerate(scores):
        if not math.isfinite(score):
            raise CheckpointError(
                f"the model's log-likelihood of {item.task}, item {item.index}, choice {choice} "
                f"is {score}: its weights are damaged, it diverged, or this precision is too "
                "narrow for it (try float32)"
            )
