"""The held-out loss: how well a model predicts text it was not trained on."""

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch.utils.data import DataLoader, Subset
from transformers import default_data_collator

from versatileffn.data.packed import PackedDataset
from versatileffn.errors import ConfigError
from versatileffn.models.mode import evaluating


@dataclass(frozen=True)
class HeldOut:
    """A held-out loss.

    Args:
        nats_per_token: mean cross entropy of the predicted tokens.
        bits_per_byte: the same per byte of the text that the tokens stand for; comparable across
            tokenizers.
        tokens: how many tokens were predicted.
    """

    nats_per_token: float
    bits_per_byte: float
    tokens: int


def held_out_loss(
    model: Any,
    dataset: PackedDataset,
    batch_size: int = 8,
    max_windows: int | None = None,
    bf16: bool = False,
) -> HeldOut:
    """Mean cross entropy over a split's windows.

    Each window of T tokens predicts its tokens 2 … T from those before them in the window; its
    first token is not predicted, and no window sees the one before it. Every predicted token has
    the same weight. Bits per byte divide by the mean bytes per token of the whole split.

    Args:
        model: a causal model whose loss in evaluation mode is the cross entropy (nats/token).
        dataset: windows of the held-out split.
        batch_size: windows at once.
        max_windows: use only the first so many windows; None uses all.
        bf16: bfloat16 autocast.

    Returns:
        The loss in nats per token and bits per byte, and the number of predicted tokens.

    Raises:
        ConfigError: there is no window to evaluate.
    """
    count = len(dataset) if max_windows is None else min(max_windows, len(dataset))
    if count < 1:
        raise ConfigError("held-out evaluation needs at least one window: raise max_windows")
    loader = DataLoader(
        Subset(dataset, range(count)), batch_size=batch_size, collate_fn=default_data_collator
    )
    device = next(model.parameters()).device
    nats, tokens = 0.0, 0
    with evaluating(model), torch.random.fork_rng(devices=[]):
        for batch in loader:
            labels = batch["labels"].to(device)
            with torch.autocast(device.type, torch.bfloat16, enabled=bf16):
                loss = model(input_ids=batch["input_ids"].to(device), labels=labels).loss
            predicted = labels[:, 1:].numel()
            nats += loss.double().item() * predicted
            tokens += predicted
    mean = nats / tokens
    return HeldOut(mean, mean / (dataset.bytes_per_token * math.log(2)), tokens)
