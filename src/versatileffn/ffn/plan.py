"""ReusePlan: what was decided for each token, before anything is computed.

Legend: M tokens (or any leading shape), K top_k, L max_loops, N num_experts.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, Self

import torch
from torch import Tensor

from versatileffn.errors import PlanError
from versatileffn.ffn.balance import balance_loss
from versatileffn.ffn.budget import Budget, for_tokens, stopped_at
from versatileffn.ffn.config import Fusion
from versatileffn.ffn.experts import spread_gates
from versatileffn.ffn.loop_prior import prior_loss
from versatileffn.ffn.plan_fields import PER_TOKEN, PlanFields, check_counts, one_hot_loops
from versatileffn.ffn.token_weights import TokenWeights


@dataclass
class ReusePlan(PlanFields):
    """How each token uses the feed-forward network.

    An executor needs nothing else to turn H into Y; telemetry and run-time budgets read and edit
    the plan, never the layer. Its arguments are those of `PlanFields`.
    """

    @property
    def expected_loops(self) -> Tensor:
        """E[L] = Σ ℓ·p_ℓ, the difficulty of each token, [M]. Source: Eq. 12."""
        return expected_loops(self.loop_probs)

    def balance_loss(self, mask: Tensor | None = None) -> Tensor | None:
        """How unevenly these tokens choose, a scalar; None where there is nothing to even out.

        Args:
            mask: tokens that count (nonzero), of the plan's leading shape; None counts all.
        """
        if self.balance_logits is None:
            return None
        return balance_loss(self.balance_logits, self.balance_top_k, mask)

    def prior_loss(self, ratio: float, mask: Tensor | None = None) -> Tensor | None:
        """How far the mean exit of these tokens is from a prior, a scalar; None where none choose.

        Args:
            ratio: of the prior, see `ffn/loop_prior.py`.
            mask: as of `balance_loss`.
        """
        return None if self.loop_logits is None else prior_loss(self.loop_logits, ratio, mask)

    def with_loops(self, loop_count: Tensor) -> Self:
        """The same tokens with other loop counts: p becomes one-hot there, and λ follows.

        Args:
            loop_count: 1-based int64, of the plan's leading shape.

        Raises:
            PlanError: the shape is another, or a count is none of 1 … L.
        """
        if loop_count.shape != self.loop_count.shape:
            raise PlanError(
                f"loop counts of shape {tuple(loop_count.shape)} given to a plan for tokens of "
                f"shape {tuple(self.loop_count.shape)}: give one for each token"
            )
        check_counts(loop_count, self.max_loops)
        probs = one_hot_loops(loop_count, self.max_loops).to(self.loop_probs.dtype)
        return self._with_probs(loop_count, probs, hard=True, uniform=None, limit=None)

    def capped(self, max_loops: int | Tensor | Budget) -> Self:
        """The same tokens, none with more loops than it may run: ℓ̂ becomes min(ℓ̂, cap).

        λ follows, with L as it was, so that nothing changes for a token under its cap. In a soft
        plan the weight of later loops moves to the cap. Gradients stay.

        Args:
            max_loops: the cap: a number, or one for each sequence, [B], or token.

        Raises:
            ConfigError: a cap is none of 1 … L.
            PlanError: the caps are for another batch.
        """
        budget = Budget.of(max_loops, self.max_loops)
        cap = for_tokens(budget.loops.to(self.loop_count.device), self.loop_count.shape)
        limit = uniform = None
        if not torch.compiler.is_compiling():  # a graph must hold for other budgets, too
            limit = budget.most if self.limit is None else min(budget.most, self.limit)
            if self.uniform is not None and not cap.dim():
                uniform = min(self.uniform, limit)
        return self._with_probs(
            torch.minimum(self.loop_count, cap), stopped_at(self.loop_probs, cap),
            hard=self.hard, uniform=uniform, limit=limit,
        )  # fmt: skip

    def _with_probs(self, loop_count: Tensor, probs: Tensor, **known: Any) -> Self:
        """Other loops; λ follows where there is a rule."""
        lam = self.lam if self.fusion is None else width_share(self.fusion, probs)
        return replace(self, loop_count=loop_count, loop_probs=probs, lam=lam, **known)

    def with_gains(self, loop_gains: Tensor | None, width_gain: Tensor | None) -> Self:
        """The same decisions with learned gains beside the full FFN as shared expert (σ = 1).

        Args:
            loop_gains: γ, [L]; None means 1.
            width_gain: s, [1]; None means 1.
        """
        shared = 0.0 if self.fusion == "depth" else 1.0  # λ = 0 without a width pathway
        return replace(self, loop_gains=loop_gains, width_gain=width_gain, shared=shared)

    def ramped(self, opened: float) -> Self:
        """The same decisions, with γ_ℓ times what of loop ℓ is open: 1 up to `opened`, of the next
        loop the fraction, then 0.

        Args:
            opened: ≥ 1.
        """
        loops_L = torch.arange(self.max_loops, device=self.loop_probs.device)
        ramp_L = (opened - loops_L.to(self.loop_probs)).clamp(0, 1)
        gains = ramp_L if self.loop_gains is None else self.loop_gains * ramp_L
        return replace(self, loop_gains=gains)

    def flatten(self) -> Self:
        """The same plan with all leading dimensions folded into one."""
        lead = self.loop_count.dim()
        if lead == 1:
            return self
        return self._map_tokens(lambda value: value.reshape(-1, *value.shape[lead:]))

    def weights(self) -> TokenWeights:
        """What executors are given: the weights of a flat plan's tokens."""
        lam_M1, run = self.lam[:, None], slice(self.limit)
        gains = None if self.loop_gains is None else self.loop_gains[run]
        shared_M1 = lam_M1 * self.shared if self.shared else None
        routed_M1 = gates_MN = None
        if self.gates is not None and self.experts is not None and self.slices is not None:
            gates_MN = spread_gates(self.gates, self.experts, self.slices.num_experts)
            routed_M1 = lam_M1 if self.width_gain is None else lam_M1 * self.width_gain
        return TokenWeights(
            self.loop_count, self.loop_probs[:, run], 1 - lam_M1, shared_M1, routed_M1, gates_MN,
            self.slices, gains, self.shared, self.hard, self.uniform,
        )  # fmt: skip

    def take(self, tokens: Tensor | slice) -> Self:
        """The plan of some tokens, in the order given.

        Args:
            tokens: indices into a flat plan, int64 [M'], or a slice of it.
        """
        return self._map_tokens(lambda value: value[tokens])

    def _map_tokens(self, change: Callable[[Tensor], Tensor]) -> Self:
        """Apply `change` to each field that has one entry per token."""
        values: dict[str, Any] = {name: getattr(self, name) for name in PER_TOKEN}
        changed = {name: change(v) for name, v in values.items() if v is not None}
        return replace(self, **changed)  # type: ignore[arg-type]


def width_share(fusion: Fusion, loop_probs: Tensor) -> Tensor:
    """λ, the weight of the width pathway, [M]. Source: Eq. 13; ½ for plain averaging."""
    max_loops = loop_probs.shape[-1]
    if fusion == "difficulty":
        return (max_loops - expected_loops(loop_probs)) / max_loops
    constant = {"average": 0.5, "width": 1.0, "depth": 0.0}[fusion]
    return loop_probs.new_full(loop_probs.shape[:-1], constant)


def expected_loops(loop_probs_ML: Tensor) -> Tensor:
    """E[L] = Σ ℓ·p_ℓ, [M]. Source: Eq. 12."""
    loops_L = torch.arange(1, loop_probs_ML.shape[-1] + 1, device=loop_probs_ML.device)
    return (loop_probs_ML * loops_L.to(loop_probs_ML.dtype)).sum(-1)
