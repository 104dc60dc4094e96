"""Log-likelihoods, fast: shared prefixes once, and the vocabulary only where something is asked.

Legend: B rows, T nodes, D hidden size, P nodes that predict, R targets, V vocabulary.
"""

from collections.abc import Iterator, Sequence
from itertools import islice, pairwise
from typing import Any

import torch
from torch import Tensor

from versatileffn.errors import DataError
from versatileffn.evaluation.likelihood import target_nats
from versatileffn.evaluation.tasks.modes import SINGLE, TREE, check_finite, choose_mode
from versatileffn.evaluation.tasks.products import check_onednn, products
from versatileffn.evaluation.tasks.requests import Item
from versatileffn.evaluation.tasks.tree import Batch, TokenTree, collate, grow_tree
from versatileffn.memory import check_memory, forward_bytes, naming_memory
from versatileffn.models.mode import evaluating

LOGITS_AT_ONCE = {"cpu": 2**22, "cuda": 2**27}
"""Numbers in a block of logits, by type of device: small enough for caches or memory, large enough
for an efficient product."""

LEAST_FILLED = 0.8
"""A row that a batch would fill up by less than this begins the next one, if the batch is of some
size."""

FEWER = "lower --batch-tokens, or take a smaller --limit or a machine with more memory"


class Scorer:
    """Scores items with one model.

    Args:
        model: a causal language model of Transformers; its dtype is the precision, or autocast's
            where that is on.
        batch_tokens: tokens in one forward pass, padding included, except where one item has more.
        mode: how, see `modes.py`; empty leaves it to `choose`.
        onednn: compute float32 linears on a CPU by oneDNN.

    Raises:
        ConfigError: oneDNN was asked for where it can't compute.
    """

    def __init__(self, model: Any, batch_tokens: int, mode: str = "", onednn: bool = False) -> None:
        self.model = model
        self.batch_tokens = batch_tokens
        self.mode = mode
        self.note: str | None = None
        weights = next(p for p in model.parameters() if p.is_floating_point())
        self.device = weights.device
        autocast = torch.is_autocast_enabled(self.device.type)
        self.dtype = torch.get_autocast_dtype(self.device.type) if autocast else weights.dtype
        self.onednn = onednn
        if onednn:
            check_onednn(self.device, self.dtype)

    def choose(self, items: Sequence[Item]) -> None:
        """Settle the mode, by the items that everything with this model is about.

        Args:
            items: all of them, not only those that are still to be scored here, so that all
                processes and reruns choose alike.

        Raises:
            CheckpointError: a log-likelihood isn't a finite number, or no mode is right.
            DataError: a token has no place in the model's vocabulary.
            ResourceError: memory doesn't suffice.
        """
        self._check_vocabulary(items)
        with evaluating(self.model), naming_memory("scoring a single item", FEWER):
            self.mode, self.note = choose_mode(
                items,
                lambda item, mode: self._answer([grow_tree(item)], mode)[0][1],
                self.plain,
                self.model.config,
                self.dtype,
            )

    def score(self, items: Sequence[Item]) -> Iterator[tuple[Item, list[float]]]:
        """Score items, those with most tokens first.

        Args:
            items: in any order.

        Yields:
            an item and the log-likelihood of each of its requests (nats), as soon as it is known.

        Raises:
            CheckpointError, DataError, ResourceError: see `choose`.
        """
        if not items:
            return
        if not self.mode:
            self.choose(items)
        self._check_vocabulary(items)
        batches = list(self._batches(items))
        needed = max(self._least_bytes(trees, self.mode) for trees in batches)
        check_memory(needed, "a batch", FEWER, self.device)
        for trees in batches:
            # not around the yield: its caller's modes are its own
            with evaluating(self.model), naming_memory("a batch", FEWER):
                scored = self._answer(trees, self.mode)
            for item, scores in scored:
                check_finite(item, scores)
            yield from scored

    def _least_bytes(self, trees: list[TokenTree], mode: str) -> int:
        """Memory that a batch takes at the very least."""
        width = max(map(len, trees))
        if mode == SINGLE:
            return forward_bytes(self.model, width, width)
        tokens = len(trees) * width
        masks = tokens * width * (2 + self.dtype.itemsize)
        return forward_bytes(self.model, tokens, 0 if mode == TREE else tokens) + masks

    def _check_vocabulary(self, items: Sequence[Item]) -> None:
        largest = max(max((*r.query, *r.targets)) for item in items for r in item.requests)
        size = self.model.get_input_embeddings().weight.shape[0]
        if largest >= size:
            raise DataError(
                f"the tokenizer makes token {largest}, and the model knows only {size} tokens: "
                "use the tokenizer it was trained with"
            )

    def _batches(self, items: Sequence[Item]) -> Iterator[list[TokenTree]]:
        """Trees, longest first, so that rows of a batch hardly differ in length."""
        batch: list[TokenTree] = []
        for tree in sorted(map(grow_tree, items), key=len, reverse=True):
            width = len(batch[0]) if batch else 0
            full = (len(batch) + 1) * width > self.batch_tokens
            mostly_padding = len(tree) < width * LEAST_FILLED
            large_enough = len(batch) * width * 4 >= self.batch_tokens
            if batch and (full or (mostly_padding and large_enough)):
                yield batch
                batch = []
            batch.append(tree)
        yield batch

    def _answer(self, trees: list[TokenTree], mode: str) -> list[tuple[Item, list[float]]]:
        """The log-likelihoods (nats) of a batch's items."""
        with products(self.onednn):
            if mode == SINGLE:
                return [(tree.item, self.plain(tree.item)) for tree in trees]
            sums = iter(self._log_likelihoods(collate(trees), mode))
        return [(tree.item, list(islice(sums, len(tree.paths)))) for tree in trees]

    def _log_likelihoods(self, batch: Batch, mode: str) -> list[float]:
        """The sum over each request's targets, in nats."""
        states_XD = self._forward(batch, mode)
        if not sum(batch.counts):
            return [0.0] * len(batch.counts)
        flat_P = batch.predicting_P.to(self.device)
        source_R, order_R = batch.source_R.sort(stable=True)
        source_R = source_R.to(self.device)
        target_R = batch.target_R[order_R].to(self.device)
        head = self.model.get_output_embeddings() if mode == TREE else None
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

    def _forward(self, batch: Batch, mode: str) -> Tensor:
        """Hidden states, or logits where the model must make them itself; [B·T, D or V]."""
        hidden_BTT = ~batch.sees_BTT.to(self.device)
        mask_BTT = torch.zeros(hidden_BTT.shape, dtype=self.dtype, device=self.device)
        mask_BTT.masked_fill_(hidden_BTT, torch.finfo(self.dtype).min)
        inputs = {
            "input_ids": batch.input_ids_BT.to(self.device),
            "position_ids": batch.position_ids_BT.to(self.device),
            "attention_mask": mask_BTT[:, None],
            "use_cache": False,
        }
        if mode == TREE:
            states_BTX = self.model.base_model(**inputs).last_hidden_state
        else:
            states_BTX = self.model(**inputs).logits
        return states_BTX.flatten(0, 1)

    def plain(self, item: Item) -> list[float]:
        """Log-likelihoods one request after the other, without padding or sharing, in nats."""
        sums = []
        for request in item.requests:
            ids_1T = torch.tensor([request.query], device=self.device)
            logits_TV = self.model(input_ids=ids_1T).logits[0, request.first :]
            target_T = torch.tensor(request.targets, dtype=torch.int64, device=self.device)
            sums.append(-float(target_nats(logits_TV, target_T).sum()))
        return sums


def _logsumexp_in_place(logits_PV: Tensor) -> Tensor:
    """log Σ exp over the vocabulary, [P]; the logits are lost, and no second block is needed."""
    largest_P1 = logits_PV.amax(dim=-1, keepdim=True)
    return logits_PV.sub_(largest_P1).exp_().sum(dim=-1).log_() + largest_P1[:, 0]
