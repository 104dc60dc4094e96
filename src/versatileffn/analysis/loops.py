"""Where a model spends its loops and which experts it asks, over held-out tokens."""

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from versatileffn.errors import ConfigError
from versatileffn.ffn.plan import ReusePlan


@dataclass(frozen=True)
class LayerUse:
    """What one layer decided, averaged over tokens.

    Args:
        mean_loops: mean loops per token, 1 to L; None where the layer doesn't decide.
        loop_share: share of tokens that run 1, 2, … L loops; sums to 1. None likewise.
        mean_lam: mean λ, weight of the width pathway. None likewise.
        expert_load: share of the K·tokens selections that each of N experts gets; sums to 1.
            None without a router.
    """

    mean_loops: float | None
    loop_share: tuple[float, ...] | None
    mean_lam: float | None
    expert_load: tuple[float, ...] | None


class _Tally:
    """Running sums of one layer."""

    def __init__(self) -> None:
        self.tokens = 0
        self.loops: Tensor | None = None  # [L], tokens by loop count
        self.lam = 0.0
        self.experts: Tensor | None = None  # [N], selections by expert

    def add_plan(self, plan: ReusePlan, num_experts: int) -> None:
        count = plan.loop_count.flatten()
        self.tokens += count.numel()
        self.loops = _add(self.loops, torch.bincount(count - 1, minlength=plan.max_loops))
        self.lam += plan.lam.double().sum().item()
        if plan.experts is not None:
            self.add_experts(plan.experts, num_experts)

    def add_experts(self, experts: Tensor, num_experts: int) -> None:
        chosen = torch.bincount(experts.flatten(), minlength=num_experts)
        self.experts = _add(self.experts, chosen)

    def result(self) -> LayerUse:
        if self.loops is None:
            return LayerUse(None, None, None, _shares(self.experts))
        shares = _shares(self.loops)
        assert shares is not None
        mean = sum(loop * share for loop, share in enumerate(shares, start=1))
        return LayerUse(mean, shares, self.lam / self.tokens, _shares(self.experts))


@torch.no_grad()
def layer_use(model: nn.Module, batches: Iterable[Tensor]) -> list[LayerUse]:
    """Loop and expert statistics of every layer, as decided at inference.

    Source: Figure 4 (mean predicted loops per layer), Eq. 13 (λ).

    Args:
        model: a `VersatileLlamaForCausalLM` of any variant.
        batches: token ids, each [B, T].

    Returns:
        One record per layer; empty for variants that decide nothing per token.

    Raises:
        ConfigError: there are no tokens.
    """
    ffn = model.config.ffn()  # type: ignore[union-attr,operator]
    if ffn.variant not in ("versatile", "moe"):
        return []
    was_training = model.training
    model.eval()
    device = next(model.parameters()).device
    tallies = [_Tally() for _ in model.model.layers]  # type: ignore[union-attr]
    asked = "output_reuse_plans" if ffn.variant == "versatile" else "output_router_logits"
    seen = False
    try:
        for input_ids in batches:
            seen = True
            out = model(input_ids=input_ids.to(device), use_cache=False, **{asked: True})
            decided = out.reuse_plans if ffn.variant == "versatile" else out.router_logits
            for tally, decision in zip(tallies, decided, strict=True):
                if ffn.variant == "versatile":
                    tally.add_plan(decision, ffn.num_experts)
                else:
                    tally.add_experts(decision.topk(ffn.top_k, dim=-1).indices, ffn.num_experts)
    finally:
        model.train(was_training)
    if not seen:
        raise ConfigError("no tokens to measure loops on: give at least one window")
    return [tally.result() for tally in tallies]


def mean_loops(layers: list[LayerUse]) -> float | None:
    """Mean loops per token over all layers, or None where no layer decides."""
    known = [layer.mean_loops for layer in layers if layer.mean_loops is not None]
    return sum(known) / len(known) if known else None


def share_below_max(layers: list[LayerUse]) -> float | None:
    """Share of tokens, over all layers, that leave before the last loop (the paper's P)."""
    known = [layer.loop_share for layer in layers if layer.loop_share is not None]
    return sum(1 - share[-1] for share in known) / len(known) if known else None


def _add(total: Tensor | None, part: Tensor) -> Tensor:
    return part.cpu() if total is None else total + part.cpu()


def _shares(counts: Tensor | None) -> tuple[float, ...] | None:
    return None if counts is None else tuple((counts.double() / counts.sum()).tolist())
