"""ReusePlan: what was decided for each token, before anything is computed.

Legend: M tokens (or any leading shape), K top_k, L max_loops, N num_experts.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, Self

import torch
import torch.nn.functional as F
from torch import Tensor

from versatileffn.errors import PlanError
from versatileffn.ffn.balance import balance_loss
from versatileffn.ffn.budget import Budget, for_tokens, stopped_at
from versatileffn.ffn.config import Fusion
from versatileffn.ffn.experts import ExpertSlices, spread_gates
from versatileffn.ffn.loop_prior import prior_loss
from versatileffn.ffn.token_weights import TokenWeights

PER_TOKEN = {
    "loop_count": 0,
    "loop_probs": 1,
    "lam": 0,
    "gates": 1,
    "experts": 1,
    "router_logits": 1,
    "loop_logits": 1,
    "balance_logits": 1,
}
"""Fields with an entry for each token, and how many dimensions the entry has."""
REQUIRED = ("loop_count", "loop_probs", "lam")


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
        fusion: how λ follows from p; None where it doesn't, and edits leave λ alone.
        uniform: every token takes this many loops and λ = 0, which is known without looking.
        limit: no token takes more loops than this, likewise; None means L.
        gates: g of Eq. 7, [M, K]; None where no virtual experts are routed to.
        experts: selected experts, int64, [M, K]; None without.
        slices: the neurons of each expert; None without.
        shared: σ, how much of the full FFN joins the width pathway.
        width_gain: s, gain of the routed experts, [1] or a scalar; None means 1.
        loop_gains: γ, gain of each loop, [L]; None means 1.
        router_logits: W_g·H, [M, N].
        loop_logits: W_loop·H, [M, L].
        balance_logits: logits whose choices the balance loss evens out, [M, N].
        balance_top_k: how many of them each token chooses.
    """

    loop_count: Tensor
    loop_probs: Tensor
    lam: Tensor
    hard: bool = True
    fusion: Fusion | None = None
    uniform: int | None = None
    limit: int | None = None
    gates: Tensor | None = None
    experts: Tensor | None = None
    slices: ExpertSlices | None = None
    shared: float = 0.0
    width_gain: Tensor | None = None
    loop_gains: Tensor | None = None
    router_logits: Tensor | None = None
    loop_logits: Tensor | None = None
    balance_logits: Tensor | None = None
    balance_top_k: int = 1

    @property
    def max_loops(self) -> int:
        """L."""
        return self.loop_probs.shape[-1]

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
        lead = getattr(self.loop_count, "shape", ())
        for name, own in PER_TOKEN.items():
            value = getattr(self, name)
            if value is None and name not in REQUIRED:
                continue
            if not isinstance(value, Tensor):
                raise PlanError(f"{name}={value!r} must be a tensor")
            if value.shape[: len(lead)] != lead or value.dim() != len(lead) + own:
                raise PlanError(
                    f"{name} has shape {tuple(value.shape)} in a plan for tokens of shape "
                    f"{tuple(lead)}: edit all fields alike"
                )

    def _check_loops(self) -> None:
        """Loop counts, p and γ agree."""
        check_counts(self.loop_count, self.max_loops)
        if self.uniform is not None and (
            self.lam.any() or not self.hard or (self.loop_count != self.uniform).any()
        ):
            raise PlanError(
                f"uniform={self.uniform} promises that many loops and λ = 0 for each token, which "
                "isn't so: set uniform to None"
            )
        probs = self.loop_probs.detach()
        if self.limit is not None and (
            (self.loop_count > self.limit).any() or probs[..., self.limit :].any()
        ):
            raise PlanError(
                f"limit={self.limit} promises that no token runs more loops, which isn't so: set "
                "limit to None"
            )
        if self.hard:
            one_hot = one_hot_loops(self.loop_count, self.max_loops)
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
        """Gates, experts and slices are there together and agree, or not at all."""
        parts = {"gates": self.gates, "experts": self.experts, "slices": self.slices}
        missing = [name for name, value in parts.items() if value is None]
        if len(missing) == len(parts):
            if self.fusion is not None and self.lam.any():
                raise PlanError(
                    f"fusion={self.fusion!r} and λ > 0, but no gates, experts and slices: "
                    "give them, set lam to 0, or set fusion to None to mix with H + σF(H) alone"
                )
            return
        if self.gates is None or self.experts is None or self.slices is None:
            raise PlanError(
                f"a plan with virtual experts lacks {' and '.join(missing)}: give gates, experts "
                "and slices, or none of them"
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


def check_counts(loop_count: Tensor, max_loops: int) -> None:
    """Refuse what are no loop counts.

    Raises:
        PlanError: one isn't of 1 … L, or they are no whole numbers.
    """
    if loop_count.dtype != torch.int64:
        raise PlanError(f"loop_count must be int64, not {loop_count.dtype}")
    if not ((loop_count >= 1) & (loop_count <= max_loops)).all():
        raise PlanError(f"loop_count must lie in 1 to max_loops={max_loops}")


def one_hot_loops(loop_count: Tensor, max_loops: int) -> Tensor:
    """p of tokens that stop after ℓ̂ loops, [M] -> [M, L] int64."""
    return F.one_hot(loop_count - 1, max_loops)


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
