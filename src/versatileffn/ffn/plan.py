"""ReusePlan: what was decided for each token, before anything is computed.

Legend: M tokens (or any leading shape), K top_k, L max_loops, N num_experts.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from versatileffn.ffn.experts import ExpertSlices

PER_TOKEN = (
    "loop_count",
    "loop_probs",
    "lam",
    "gates",
    "experts",
    "router_logits",
    "loop_logits",
)


@dataclass
class ReusePlan:
    """How each token uses the feed-forward network.

    An executor needs nothing else to turn H into Y; telemetry and run-time budgets read and edit
    the plan, never the layer.

    Args:
        loop_count: ℓ̂, loops of each token, 1-based int64, [M].
        loop_probs: p of Eq. 10, weights of H⁽¹⁾…H⁽ᴸ⁾, [M, L]. One-hot unless `soft`. Executors
            rely on Σ p = 1.
        lam: λ of Eq. 13, weight of the width pathway, [M].
        hard: p is one-hot, so a token may stop after ℓ̂ loops.
        gates: g of Eq. 7, [M, K]; None without a width pathway.
        experts: selected experts, int64, [M, K]; None without a width pathway.
        slices: the neurons of each expert; None without a width pathway.
        shared: σ, how much of the full FFN joins the width pathway.
        width_gain: s, gain of the routed experts, [1] or a scalar; None means 1.
        loop_gains: γ, gain of each loop, [L]; None means 1.
        router_logits: W_g·H, [M, N].
        loop_logits: W_loop·H, [M, L].
    """

    loop_count: Tensor
    loop_probs: Tensor
    lam: Tensor
    hard: bool = True
    gates: Tensor | None = None
    experts: Tensor | None = None
    slices: ExpertSlices | None = None
    shared: float = 0.0
    width_gain: Tensor | None = None
    loop_gains: Tensor | None = None
    router_logits: Tensor | None = None
    loop_logits: Tensor | None = None

    @property
    def max_loops(self) -> int:
        """L."""
        return self.loop_probs.shape[-1]

    @property
    def expected_loops(self) -> Tensor:
        """E[L] = Σ ℓ·p_ℓ, the difficulty of each token, [M]. Source: Eq. 12."""
        return expected_loops(self.loop_probs)

    def flatten(self) -> "ReusePlan":
        """The same plan with all leading dimensions folded into one."""
        lead = self.loop_count.dim()
        if lead == 1:
            return self
        return self._map_tokens(lambda value: value.reshape(-1, *value.shape[lead:]))

    def check(self) -> None:
        """Check a plan that someone edited; executors read different fields and trust they agree.

        Raises:
            ValueError: a loop count isn't int64 or outside 1 … L, a hard plan's p isn't one-hot at
                ℓ̂, or a token has an expert twice.
        """
        if self.loop_count.dtype != torch.int64:
            raise ValueError(f"loop_count must be int64, not {self.loop_count.dtype}")
        if not ((self.loop_count >= 1) & (self.loop_count <= self.max_loops)).all():
            raise ValueError(f"loop_count must lie in 1 to max_loops={self.max_loops}")
        if self.hard:
            one_hot = torch.nn.functional.one_hot(self.loop_count - 1, self.max_loops)
            if not torch.equal(self.loop_probs.detach(), one_hot.to(self.loop_probs.dtype)):
                raise ValueError("a hard plan needs loop_probs that are one-hot at loop_count")
        if self.experts is not None and (self.experts.sort(-1).values.diff(dim=-1) == 0).any():
            raise ValueError("a token has an expert twice: add up its gates instead")

    def take(self, tokens: Tensor | slice) -> "ReusePlan":
        """The plan of some tokens, in the order given.

        Args:
            tokens: indices into a flat plan, int64 [M'], or a slice of it.
        """
        return self._map_tokens(lambda value: value[tokens])

    def _map_tokens(self, change: Callable[[Tensor], Tensor]) -> "ReusePlan":
        """Apply `change` to each field that has one entry per token."""
        values: dict[str, Any] = {name: getattr(self, name) for name in PER_TOKEN}
        changed = {name: change(v) for name, v in values.items() if v is not None}
        return replace(self, **changed)  # type: ignore[arg-type]


def expected_loops(loop_probs_ML: Tensor) -> Tensor:
    """E[L] = Σ ℓ·p_ℓ, [M]. Source: Eq. 12."""
    loops_L = torch.arange(1, loop_probs_ML.shape[-1] + 1, device=loop_probs_ML.device)
    return (loop_probs_ML * loops_L.to(loop_probs_ML.dtype)).sum(-1)
