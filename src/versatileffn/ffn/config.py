"""What a reused feed-forward network looks like: one frozen record for every variant."""

import dataclasses
import warnings
from dataclasses import dataclass
from typing import Literal, get_type_hints

from versatileffn.errors import ConfigError
from versatileffn.ffn.values import check_value

Variant = Literal["dense", "k-loop", "moe", "versatile"]
Fusion = Literal["difficulty", "average", "width", "depth"]
LoopMix = Literal["hard", "soft"]
ReuseGains = Literal["fixed", "learned"]
Execution = Literal["auto", "masked", "packed", "recompute", "triton"]
MOST_LOOPS = 2**10
"""Of any count of loops: each costs a feed-forward network, and a forward pass has to end."""


@dataclass(frozen=True)
class FFNConfig:
    """How one feed-forward network is used, for every variant.

    Source: arXiv 2512.14531, Eq. 3–13, and its baselines.

    Args:
        variant: `versatile` (the paper), or a baseline: `dense`, `k-loop`, `moe`.
        num_experts: N, virtual experts (versatile) or real small experts (moe).
        top_k: K, experts selected for each token.
        d_expert: f, hidden neurons of one expert; None means ⌊d_hidden / N⌋.
        max_loops: L, the most often that a token may pass through the FFN (versatile).
        num_loops: how often every token passes through the FFN (k-loop).
        fusion: how width and depth meet. `difficulty` is Eq. 3 with λ of Eq. 13; `average` fixes
            λ = ½; `width` and `depth` keep one pathway (width with the full FFN as shared expert).
        loop_mix: `hard` is one-hot with a straight-through gradient; `soft` mixes all loops.
        reuse_gains: `fixed` is the paper's form; `learned` starts exactly at the dense FFN.
        normed_controller: the controller reads norm(H) instead of H.
        router_aux_loss_coef: weight of the balance loss in the training loss.
        tau: temperature τ of Eq. 10. Training anneals it; `soft` mixes use it at inference too.
        execution: which executor carries out a plan, see `execution/select.py`.

    Raises:
        ConfigError: a value is unknown or out of range, with the remedy.
    """

    variant: Variant = "versatile"
    num_experts: int = 8
    top_k: int = 2
    d_expert: int | None = None
    max_loops: int = 4
    num_loops: int = 2
    fusion: Fusion = "difficulty"
    loop_mix: LoopMix = "hard"
    reuse_gains: ReuseGains = "fixed"
    normed_controller: bool = False
    router_aux_loss_coef: float = 1e-5
    tau: float = 5.0
    execution: Execution = "auto"

    def __post_init__(self) -> None:
        for name, hint in get_type_hints(type(self)).items():
            check_value(name, getattr(self, name), hint)
        for name in ("max_loops", "num_loops"):
            if getattr(self, name) > MOST_LOOPS:
                raise ConfigError(
                    f"{name}={getattr(self, name):,} must be at most {MOST_LOOPS:,}: lower it"
                )
        if self.top_k > self.num_experts:
            raise ConfigError(
                f"top_k={self.top_k} exceeds num_experts={self.num_experts}: "
                "a token can't select more experts than there are; lower top_k"
            )
        if not self.tau > 0:
            raise ConfigError(f"tau={self.tau!r} must be positive: it divides the loop logits")
        if self.router_aux_loss_coef < 0:
            raise ConfigError(f"router_aux_loss_coef={self.router_aux_loss_coef!r} is negative")

    @property
    def uses_width(self) -> bool:
        """Whether the width pathway, and so a router, exists."""
        return self.variant == "versatile" and self.fusion != "depth"

    @property
    def uses_depth(self) -> bool:
        """Whether the depth pathway, and so a loop predictor, exists."""
        return self.variant == "versatile" and self.fusion != "width"

    @property
    def has_router(self) -> bool:
        """Whether tokens select experts, virtual or real, so that there is a balance loss."""
        return self.uses_width or self.variant == "moe"

    def expert_size(self, d_hidden: int) -> int:
        """Hidden neurons of one expert in an FFN of `d_hidden` neurons (f).

        Raises:
            ConfigError: the N experts of f neurons don't fit into `d_hidden` (versatile only:
                its experts are slices, those of `moe` have weights of their own).
        """
        d_expert = self.d_expert if self.d_expert is not None else d_hidden // self.num_experts
        if d_expert < 1:
            raise ConfigError(
                f"num_experts={self.num_experts} leaves no neuron for an expert of an FFN with "
                f"d_hidden={d_hidden}: lower num_experts"
            )
        needed = self.num_experts * d_expert
        if self.uses_width and needed > d_hidden:
            raise ConfigError(
                f"num_experts·d_expert = {self.num_experts}·{d_expert} = {needed} exceeds "
                f"d_hidden={d_hidden}: lower num_experts, or d_expert to at most "
                f"{d_hidden // self.num_experts}"
            )
        return d_expert

    def warn_unused_neurons(self, d_hidden: int) -> int:
        """Warn about, and count, the hidden neurons that no expert owns.

        Source: Eq. 4–5; the pathway then uses N·f of F neurons.
        """
        unused = d_hidden - self.num_experts * self.expert_size(d_hidden) if self.uses_width else 0
        if unused:
            warnings.warn(
                f"{unused} of {d_hidden} hidden neurons belong to no expert: they serve the depth "
                "pathway only. d_hidden = num_experts·d_expert would use them all.",
                stacklevel=3,
            )
        return unused

    def replace(self, **changes: object) -> "FFNConfig":
        """A copy with some fields changed, checked again."""
        return dataclasses.replace(self, **changes)  # type: ignore[arg-type]
