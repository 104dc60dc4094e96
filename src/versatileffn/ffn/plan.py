"""ReusePlan: what was decided for each token, before anything is computed.

Legend: M tokens (or any leading shape), K top_k, L max_loops, N num_experts.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from versatileffn.errors import PlanError
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

    def check(self, d_hidden: int | None = None) -> None:
        """Check a plan that someone made or edited; executors read different fields and trust they
        agree.

        Args:
            d_hidden: F of the layer that is to carry it out, where known.

        Raises:
            PlanError: fields contradict each other, or the plan doesn't fit the layer.
        """
        self._check_tokens()
        self._check_loops()
        self._check_width(d_hidden)

    def _check_tokens(self) -> None:
        """Every field is what it should be and speaks of the same tokens."""
        if not isinstance(self.hard, bool):
            raise PlanError(f"hard={self.hard!r} must be True or False")
        for name in PER_TOKEN:
            value = getattr(self, name)
            required = name in ("loop_count", "loop_probs", "lam")
            if not isinstance(value, Tensor) and (required or value is not None):
                raise PlanError(f"{name}={value!r} must be a tensor")
        lead = self.loop_count.shape
        for name in PER_TOKEN:
            value = getattr(self, name)
            own = 0 if name in ("loop_count", "lam") else 1  # dimensions after those of tokens
            if value is None:
                continue
            if value.shape[: len(lead)] != lead or value.dim() != len(lead) + own:
                raise PlanError(
                    f"{name} has shape {tuple(value.shape)} in a plan for tokens of shape "
                    f"{tuple(lead)}: edit all fields alike"
                )

    def _check_loops(self) -> None:
        """Loop counts, p and γ agree."""
        if self.loop_count.dtype != torch.int64:
            raise PlanError(f"loop_count must be int64, not {self.loop_count.dtype}")
        if not ((self.loop_count >= 1) & (self.loop_count <= self.max_loops)).all():
            raise PlanError(f"loop_count must lie in 1 to max_loops={self.max_loops}")
        probs = self.loop_probs.detach()
        if self.hard:
            one_hot = torch.nn.functional.one_hot(self.loop_count - 1, self.max_loops)
            if not torch.equal(probs, one_hot.to(probs.dtype)):
                raise PlanError("a hard plan needs loop_probs that are one-hot at loop_count")
        elif not ((probs.sum(-1) - 1).abs() < 1e-2).all():
            raise PlanError("loop_probs must sum to 1 for each token")
        if self.loop_gains is not None and self.loop_gains.shape != (self.max_loops,):
            raise PlanError(
                f"loop_gains of shape {tuple(self.loop_gains.shape)} can't belong to "
                f"max_loops={self.max_loops} loops: give one for each"
            )

    def _check_width(self, d_hidden: int | None) -> None:
        """Gates, experts and slices are there together and agree, or the plan doesn't need them."""
        parts = {"gates": self.gates, "experts": self.experts, "slices": self.slices}
        missing = [name for name, value in parts.items() if value is None]
        if len(missing) == len(parts):
            if self.lam.any():
                raise PlanError(
                    "a plan without gates, experts and slices has no width pathway: give them, or "
                    "set lam to 0"
                )
            return
        if self.gates is None or self.experts is None or self.slices is None:
            raise PlanError(
                f"a plan with a width pathway lacks {' and '.join(missing)}: give gates, experts "
                "and slices, or none of them and lam = 0"
            )
        if self.gates.shape != self.experts.shape:
            raise PlanError(
                f"gates of shape {tuple(self.gates.shape)} for experts of shape "
                f"{tuple(self.experts.shape)}: each selected expert needs one gate"
            )
        if self.experts.dtype != torch.int64:
            raise PlanError(f"experts must be int64, not {self.experts.dtype}")
        num_experts = self.slices.num_experts
        if not ((self.experts >= 0) & (self.experts < num_experts)).all():
            raise PlanError(f"experts must lie in 0 to {num_experts - 1}: there are {num_experts}")
        if (self.experts.sort(-1).values.diff(dim=-1) == 0).any():
            raise PlanError("a token has an expert twice: add up its gates instead")
        if d_hidden is not None and self.slices.d_hidden != d_hidden:
            raise PlanError(
                f"slices of an FFN with d_hidden={self.slices.d_hidden} given to one with "
                f"d_hidden={d_hidden}: make the plan with this layer's controller"
            )

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
