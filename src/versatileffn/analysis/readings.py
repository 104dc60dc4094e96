"""What a model decided about each token of some text, in arrays small enough to keep.

Legend: T tokens of one sequence, K experts of a token.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any

import numpy as np
import torch
from torch import Tensor

from versatileffn.analysis.deciding import deciding_layers
from versatileffn.analysis.reuse import TOKENS_AT_ONCE, unpadded_batches
from versatileffn.evaluation.observe import Observed, observe
from versatileffn.evaluation.perplexity import LOGITS_AT_ONCE
from versatileffn.ffn.moe import Routing
from versatileffn.ffn.plan import ReusePlan


@dataclass(frozen=True)
class LayerReading:
    """One layer's decisions about one sequence.

    Args:
        loops_T: 1-based; None where all tokens take the same by design, or experts are real.
        lam_T: λ; None likewise.
        experts_TK: selected experts, 0-based; None without a router.
        max_loops: L; 1 where experts are real.
        num_experts: N; 0 without a router.
    """

    loops_T: Tensor | None
    lam_T: Tensor | None
    experts_TK: Tensor | None
    max_loops: int
    num_experts: int = 0


@dataclass(frozen=True)
class Reading:
    """One sequence as a model read it.

    Args:
        ids_T: its tokens.
        nats_T: the surprise of each, float32, NaN for the first.
        layers: what each layer decided.
    """

    ids_T: Tensor
    nats_T: Tensor
    layers: tuple[LayerReading, ...]


def read(model: Any, sequences: Sequence[Sequence[int]]) -> list[Reading]:
    """Let a model read token sequences, each on its own.

    Args:
        model: a causal language model of any family.
        sequences: token ids, none of them empty.

    Returns:
        A reading of each, in the order given.

    Raises:
        ConfigError: there are no tokens, or the model decides neither loops nor experts.
        CheckpointError: the model computes no finite numbers.
    """
    at_once = min(TOKENS_AT_ONCE, max(1, LOGITS_AT_ONCE // model.config.vocab_size))
    batches = unpadded_batches(sequences, at_once)
    found = chain.from_iterable(_readings(model, seen) for seen in observe(model, batches))
    by_length = sorted(range(len(sequences)), key=lambda index: len(sequences[index]))
    placed = dict(zip(by_length, found, strict=True))
    return [placed[index] for index in range(len(sequences))]


def _readings(model: Any, seen: Observed) -> list[Reading]:
    nats_BT, ids_BT = seen.surprise().float().cpu(), seen.ids_BT.cpu()
    if not any(isinstance(decision, Routing) for decision in seen.decisions):
        deciding_layers(model, seen.decisions)
    layers = [_layer(decision) for decision in seen.decisions]
    return [
        Reading(ids_BT[row], nats_BT[row], tuple(_row(layer, row) for layer in layers))
        for row in range(len(ids_BT))
    ]


def loops_decided(readings: Sequence[Reading]) -> bool:
    """Whether there is a layer that decides how often tokens loop."""
    return any(layer.loops_T is not None for layer in readings[0].layers)


def expert_loads(readings: Sequence[Reading], layer: int) -> np.ndarray:
    """Each expert's share of the selections, [N].

    Args:
        readings: of a model that routes in that layer.
        layer: which, 1-based.
    """
    own = [reading.layers[layer - 1] for reading in readings]
    chosen = torch.cat([each.experts_TK.flatten() for each in own if each.experts_TK is not None])
    counts: np.ndarray = chosen.long().bincount(minlength=own[0].num_experts).double().numpy()
    return counts / counts.sum()


def _layer(decision: ReusePlan | Routing) -> LayerReading:
    """Of a whole batch; the experts of a token in the order of their gates."""
    if isinstance(decision, Routing):
        chosen = decision.router_logits.topk(decision.top_k, dim=-1).indices
        total = decision.router_logits.shape[-1]
        return LayerReading(None, None, chosen.to("cpu", torch.int16), 1, total)
    experts, total = None, 0
    if decision.experts is not None and decision.slices is not None:
        experts, total = decision.experts.to("cpu", torch.int16), decision.slices.num_experts
    if decision.uniform is not None:
        return LayerReading(None, None, experts, decision.max_loops, total)
    loops = decision.loop_count.to("cpu", torch.uint8)
    return LayerReading(loops, decision.lam.float().cpu(), experts, decision.max_loops, total)


def _row(layer: LayerReading, row: int) -> LayerReading:
    parts = (layer.loops_T, layer.lam_T, layer.experts_TK)
    loops, lam, experts = (None if part is None else part[row] for part in parts)
    return LayerReading(loops, lam, experts, layer.max_loops, layer.num_experts)
