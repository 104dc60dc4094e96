"""What a model's tokens really do: N_mean, P and executed FLOPs over given token sequences."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from versatileffn.analysis.executed import executed_ffn_flops
from versatileffn.evaluation.loops import LayerUse, layer_use, mean_loops, share_below_max

TOKENS_AT_ONCE = 4096


@dataclass(frozen=True)
class Reuse:
    """Measured reuse.

    Source: Table 2, whose VersatileFFN entries need N_mean and P on ARC-c.

    Args:
        mean_loops: N_mean, mean loops per token over all layers; None where no layer decides.
        share_below_max: P, share of tokens that run fewer than L loops. None likewise.
        layers: what each layer decides. Empty likewise.
        executed_flops: FFN FLOPs per token, counted while the model ran.
        controller_flops: FLOPs per token of routers and loop predictors, counted likewise.
        tokens: over how many tokens.
    """

    mean_loops: float | None
    share_below_max: float | None
    layers: tuple[LayerUse, ...]
    executed_flops: float
    controller_flops: float
    tokens: int


def measure_reuse(model: Any, batches: Sequence[Tensor]) -> Reuse:
    """Measure what every token of some sequences does in every layer, as at inference.

    Args:
        model: a causal language model of any family, ours or dense.
        batches: token ids without padding, each [B, T].

    Returns:
        The averages; every token counts alike.

    Raises:
        ConfigError: there are no tokens.
        CheckpointError: the model computes no finite numbers.
    """
    layers = layer_use(model, batches)
    executed = executed_ffn_flops(model, batches)
    return Reuse(
        mean_loops(layers),
        share_below_max(layers),
        tuple(layers),
        executed.ffn_per_token,
        executed.controller_per_token,
        executed.tokens,
    )


def unpadded_batches(
    sequences: Iterable[Sequence[int]], tokens_at_once: int = TOKENS_AT_ONCE
) -> Iterator[Tensor]:
    """Batch token sequences of equal length together, so that no padding is counted.

    Args:
        sequences: token ids; empty ones are passed over.
        tokens_at_once: most tokens of one batch; a longer sequence is a batch of its own.

    Returns:
        Token ids, each [B, T], short sequences first.
    """
    by_length: dict[int, list[Sequence[int]]] = {}
    for sequence in sequences:
        if len(sequence):
            by_length.setdefault(len(sequence), []).append(sequence)
    for length in sorted(by_length):
        alike, rows = by_length[length], max(1, tokens_at_once // length)
        for start in range(0, len(alike), rows):
            yield torch.tensor([list(row) for row in alike[start : start + rows]])
