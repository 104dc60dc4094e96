"""The held-out loss: how well a model predicts text it was not trained on, document by document."""

from collections.abc import Sequence
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
) -> HeldOut:
    """Mean cross entropy over a split's windows.

    Each window of T tokens predicts its tokens 2 … T from those before them in the window; its
    first token is not predicted, and no window sees the one before it. Every predicted token has
    the same weight.

    Args:
        model: a causal model.
        dataset: windows of the held-out split.
        batch_size: windows at once.
        windows: numbers of the windows to use; None uses all.
        bf16: bfloat16 autocast.

    Raises:
        ConfigError: there is no window to evaluate.
    """
    chosen = range(len(dataset)) if windows is None else windows
    if not len(chosen):
        raise ConfigError("held-out evaluation needs at least one window: name some")
    text = SplitText(dataset)
    loader = DataLoader(
        Subset(dataset, chosen), batch_size=batch_size, collate_fn=default_data_collator
    )
    device = next(model.parameters()).device
    nats, sizes = [], []
    with evaluating(model), torch.no_grad(), torch.random.fork_rng(devices=[]):
        for batch in loader:
            ids_BT = batch["input_ids"].to(device)
            with torch.autocast(device.type, torch.bfloat16, enabled=bf16):
                logits_BTV = model(input_ids=ids_BT, use_cache=False).logits
            nats += [
                target_nats(logits_TV[:-1], ids_T[1:]).cpu().numpy()
                for logits_TV, ids_T in zip(logits_BTV, ids_BT, strict=True)
            ]
            sizes.append(text.sizes(batch["input_ids"][:, 1:].numpy()).sum())
    first = np.array(chosen)[:, None] * dataset.seq_len
    positions = (first + np.arange(1, dataset.seq_len)).ravel()
    per_token = np.concatenate(nats)
    total = float(per_token.sum())
    return HeldOut(
        total / per_token.size,
        bits_per_byte(total, float(sum(sizes))),
        per_token.size,
        _by_document(text.documents(positions), per_token),
    )


def _by_document(documents: np.ndarray, nats: np.ndarray) -> tuple[DocumentLoss, ...]:
    """Sums by document, from each predicted token's document and nats."""
    _, number = np.unique(documents, return_inverse=True)
    sums = np.bincount(number, weights=nats)
    return tuple(
        DocumentLoss(int(tokens), float(total))
        for tokens, total in zip(np.bincount(number), sums, strict=True)
    )
