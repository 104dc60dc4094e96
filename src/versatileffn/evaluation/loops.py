"""Where a model spends its loops and which experts it asks: running sums over its decisions."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from versatileffn.evaluation.observe import Batch, observe
from versatileffn.ffn.moe import Routing
from versatileffn.ffn.plan import ReusePlan


@dataclass(frozen=True)
class LayerUse:
    """What one layer decided, averaged over tokens.

    Args:
        mean_loops: mean loops per token, 1 to L; None where all tokens take the same by design.
        loop_share: share of tokens that run 1, 2, … L loops; sums to 1. None likewise.
        mean_lam: mean λ, weight of the width pathway. None likewise.
        expert_load: share of the K·tokens selections that each of N experts gets; sums to 1.
            None without a router.
    """

    mean_loops: float | None = None
    loop_share: Sequence[float] | None = None
    mean_lam: float | None = None
    expert_load: Sequence[float] | None = None


class LayerTally:
    """Running sums of what one layer decides; of constant plans there is nothing to sum up."""

    def __init__(self) -> None:
        self.loops: Tensor | None = None  # [L], tokens by loop count
        self.lam = 0.0
        self.experts: Tensor | None = None  # [N], selections by expert

    def add(self, decision: ReusePlan | Routing, mask: Tensor | None = None) -> None:
        """Count the tokens of one batch.

        Args:
            decision: of this layer.
            mask: of the decision's leading shape, 0 where a token doesn't count; None counts all.
        """
        kept = slice(None) if mask is None else mask.flatten().bool()
        if isinstance(decision, Routing):
            logits = decision.router_logits.detach()
            chosen = logits.topk(decision.top_k, dim=-1).indices
            self._add_experts(chosen.flatten(0, -2)[kept], logits.shape[-1])
            return
        if decision.uniform is None:
            counts = decision.loop_count.flatten()[kept]
            self.loops = _add(self.loops, counts - 1, decision.max_loops)
            self.lam += decision.lam.detach().flatten()[kept].double().sum().item()
        if decision.experts is not None and decision.slices is not None:
            chosen = decision.experts.flatten(0, -2)[kept]
            self._add_experts(chosen, decision.slices.num_experts)

    def use(self) -> LayerUse:
        """The averages so far."""
        load = None if self.experts is None else _shares(self.experts)
        if self.loops is None:
            return LayerUse(expert_load=load)
        shares = _shares(self.loops)
        mean = sum(loop * share for loop, share in enumerate(shares, start=1))
        return LayerUse(mean, shares, self.lam / self.loops.sum().item(), load)

    def _add_experts(self, chosen: Tensor, num_experts: int) -> None:
        self.experts = _add(self.experts, chosen.flatten(), num_experts)


def layer_use(model: Any, batches: Iterable[Batch]) -> list[LayerUse]:
    """Loop and expert statistics of every layer, as decided at inference; padding doesn't count.

    Source: Figure 4 (mean predicted loops per layer), Eq. 13 (λ).

    Args:
        model, batches: see `observe`.

    Returns:
        One record per layer; empty for models that decide nothing per token.

    Raises:
        ConfigError: there are no tokens.
        CheckpointError: the model computes no finite numbers.
    """
    tallies: list[LayerTally] = []
    for seen in observe(model, batches):
        tallies = tallies or [LayerTally() for _ in seen.decisions]
        for tally, decision in zip(tallies, seen.decisions, strict=True):
            tally.add(decision, seen.mask_BT)
    used = [tally.use() for tally in tallies]
    return [] if all(use == LayerUse() for use in used) else used


def mean_loops(layers: list[LayerUse]) -> float | None:
    """N_mean, loops per token over the layers that decide, or None where none does."""
    known = [layer.mean_loops for layer in layers if layer.mean_loops is not None]
    return sum(known) / len(known) if known else None


def share_below_max(layers: list[LayerUse]) -> float | None:
    """P, the share of tokens, over the layers that decide, that leave before the last loop."""
    known = [layer.loop_share for layer in layers if layer.loop_share is not None]
    return sum(1 - share[-1] for share in known) / len(known) if known else None


def _add(total: Tensor | None, indices: Tensor, size: int) -> Tensor:
    counts = torch.bincount(indices, minlength=size).cpu()
    return counts if total is None else total + counts


def _shares(counts: Tensor) -> tuple[float, ...]:
    return tuple((counts.double() / counts.sum()).tolist())
