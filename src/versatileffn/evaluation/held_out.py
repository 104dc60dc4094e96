"""The held-out loss: how well a model predicts text it was not trained on, document by document."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch.utils.data import DataLoader, Subset
from transformers import default_data_collator

from versatileffn.data.packed import PackedDataset
from versatileffn.data.split_text import SplitText, bits_per_byte
from versatileffn.errors import ConfigError
from versatileffn.evaluation.likelihood import target_nats
from versatileffn.evaluation.processes import divide_work
from versatileffn.models.mode import evaluating


@dataclass(frozen=True)
class DocumentLoss:
    """The part of a held-out loss that is one document's.

    Args:
        tokens: how many of its tokens were predicted.
        nats: their cross entropy, summed.
    """

    tokens: int
    nats: float


@dataclass(frozen=True)
class HeldOut:
    """A held-out loss.

    Args:
        nats_per_token: mean cross entropy of the predicted tokens.
        bits_per_byte: the same per byte of the text that the predicted tokens stand for;
            comparable across tokenizers.
        tokens: how many tokens were predicted.
        documents: what each document contributed, in the order of the split; documents without a
            predicted token are left out.
    """

    nats_per_token: float
    bits_per_byte: float
    tokens: int
    documents: tuple[DocumentLoss, ...]


def held_out_loss(
    model: Any,
    dataset: PackedDataset,
    batch_size: int = 8,
    windows: Sequence[int] | None = None,
    bf16: bool = False,
    text: SplitText | None = None,
) -> HeldOut:
    """Mean cross entropy over a split's windows; several processes share them.

    Each window of T tokens predicts its tokens 2 … T from those before them in the window; its
    first token is not predicted, and no window sees the one before it. Every predicted token has
    the same weight. Tokens that the folder calls unscored count like the first.

    Args:
        model: a causal model.
        dataset: windows of the held-out split.
        batch_size: windows at once.
        windows: numbers of the windows to use; None uses all.
        bf16: bfloat16 autocast.
        text: the split's, where it is known already; finding it reads all tokens.

    Raises:
        ConfigError: there is no window to evaluate.
    """
    chosen = list(range(len(dataset)) if windows is None else windows)
    if not chosen:
        raise ConfigError("held-out evaluation needs at least one window: name some")
    text = text or SplitText(dataset)

    def score(mine: list[int]) -> dict[int, np.ndarray]:
        return dict(zip(mine, _nats(model, dataset, mine, batch_size, bf16), strict=True))

    found = divide_work(model, chosen, score, alike=True)
    nats = np.concatenate([found[window] for window in chosen])
    first = np.array(chosen)[:, None] * dataset.seq_len
    positions = (first + np.arange(dataset.unscored, dataset.seq_len)).ravel()
    size = sum(
        float(text.sizes(dataset[window]["input_ids"][dataset.unscored :].numpy()).sum())
        for window in chosen
    )
    total = float(nats.sum())
    return HeldOut(
        total / nats.size,
        bits_per_byte(total, size),
        nats.size,
        _by_document(text.documents(positions), nats),
    )


def _nats(
    model: Any, dataset: PackedDataset, windows: list[int], batch_size: int, bf16: bool
) -> Iterator[np.ndarray]:
    """The cross entropies of each window's scored tokens, float64; T − 1 where all but one are."""
    scored = dataset.unscored
    loader = DataLoader(
        Subset(dataset, windows), batch_size=batch_size, collate_fn=default_data_collator
    )
    device = next(model.parameters()).device
    with evaluating(model), torch.random.fork_rng(devices=[]):
        for batch in loader:
            ids_BT = batch["input_ids"].to(device)
            with torch.autocast(device.type, torch.bfloat16, enabled=bf16):
                logits_BTV = model(input_ids=ids_BT, use_cache=False).logits
            for logits_TV, ids_T in zip(logits_BTV, ids_BT, strict=True):
                yield target_nats(logits_TV[scored - 1 : -1], ids_T[scored:]).cpu().numpy()


def _by_document(documents: np.ndarray, nats: np.ndarray) -> tuple[DocumentLoss, ...]:
    """Sums by document, from each predicted token's document and nats."""
    _, number = np.unique(documents, return_inverse=True)
    sums = np.bincount(number, weights=nats)
    return tuple(
        DocumentLoss(int(tokens), float(total))
        for tokens, total in zip(np.bincount(number), sums, strict=True)
    )
