"""PlanFields: what a plan says of each token, and whether what it says agrees.

Legend: M tokens (or any leading shape), K top_k, L max_loops, N num_experts.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from versatileffn.errors import PlanError
from versatileffn.ffn.config import Fusion
from versatileffn.ffn.experts import ExpertSlices

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
class PlanFields:
    """What was decided for each token; `ReusePlan` is these fields with all that reads them.

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
