"""What a reused feed-forward network looks like: `Versatile`, `KLoop`, `MoE`, `Dense`.

One frozen record for each variant, with its own knobs and the sizes that follow from them.
"""

from dataclasses import dataclass, field
from typing import ClassVar, Literal

from versatileffn.errors import ConfigError
from versatileffn.ffn.base_config import ADJUSTABLE, FFNConfig
from versatileffn.ffn.values import Indices

Fusion = Literal["difficulty", "average", "width", "depth"]
LoopMix = Literal["hard", "soft"]
ReuseGains = Literal["fixed", "learned"]


@dataclass(frozen=True)
class Dense(FFNConfig):
    """The FFN as it is, once for every token: the control."""

    variant: ClassVar[str] = "dense"


@dataclass(frozen=True)
class KLoop(FFNConfig):
    """The whole FFN, k times for every token. Source: the paper's k-Loop baseline.

    Args:
        num_loops: k, how often every token passes through the FFN.
        reuse_gains: `fixed` is the paper's form; `learned` starts exactly at the dense FFN.
        loop_rank: rank of what each loop after the first adds to the weights; None adds nothing.
        reuse_layers: indices from 0 of the layers that are reused; the others run as in the dense
            model. None means all.
        gain_init: where learned gains start, for training from scratch; a conversion is exact at 0.
    """

    variant: ClassVar[str] = "k-loop"
    num_loops: int = 2
    reuse_gains: ReuseGains = "fixed"
    loop_rank: int | None = None
    reuse_layers: Indices = None
    gain_init: float = 0.0

    @property
    def loops(self) -> int:
        """k."""
        return self.num_loops

    @property
    def starts_exactly(self) -> bool:
        """With learned gains from 0, or where there is one loop."""
        return super().starts_exactly or self.num_loops == 1


@dataclass(frozen=True)
class Routed(FFNConfig):
    """What real and virtual experts have in common.

    Args:
        num_experts: N.
        top_k: K, experts selected for each token.
        d_expert: f, hidden neurons of one expert; None means ⌊d_hidden / N⌋.
    """

    num_experts: int = 8
    top_k: int = field(default=2, metadata=ADJUSTABLE)
    d_expert: int | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.top_k > self.num_experts:
            raise ConfigError(
                f"top_k={self.top_k} exceeds num_experts={self.num_experts}: "
                "a token can't select more experts than there are; lower top_k"
            )
        coefficient = self.to_dict()["router_aux_loss_coef"]
        if coefficient < 0:
            raise ConfigError(f"router_aux_loss_coef={coefficient!r} is negative")

    @property
    def has_router(self) -> bool:
        """Somebody selects the experts."""
        return True

    def expert_size(self, d_hidden: int) -> int:
        """f: ⌊d_hidden / N⌋ unless it is given."""
        if self.d_expert is not None:
            return self.d_expert
        if self.num_experts > d_hidden:
            raise ConfigError(
                f"num_experts={self.num_experts} leaves no neuron for an expert of an FFN with "
                f"d_hidden={d_hidden}: lower num_experts"
            )
        return d_hidden // self.num_experts


@dataclass(frozen=True)
class MoE(Routed):
    """The FFN plus N real small experts, K for each token. Source: the baseline of Table 2.

    Args:
        num_experts: N.
        top_k: K, experts selected for each token.
        d_expert: f, hidden neurons of one expert; None means ⌊d_hidden / N⌋.
        reuse_gains: with `learned` the experts' W_out starts at 0, so exactly at the dense FFN.
        router_aux_loss_coef: weight of the balance loss in the training loss.
        reuse_layers: indices from 0 of the layers that are reused; the others run as in the dense
            model. None means all.
    """

    variant: ClassVar[str] = "moe"
    reuse_gains: ReuseGains = field(default="fixed", metadata=ADJUSTABLE)
    router_aux_loss_coef: float = field(default=1e-5, metadata=ADJUSTABLE)
    reuse_layers: Indices = None


@dataclass(frozen=True)
class Versatile(Routed):
    """One FFN reused in width and depth. Source: arXiv 2512.14531, Eq. 3-13.

    Args:
        num_experts: N, virtual experts.
        top_k: K, experts selected for each token.
        d_expert: f, hidden neurons of one expert; None means ⌊d_hidden / N⌋.
        max_loops: L, the most often that a token may pass through the FFN.
        fusion: how width and depth meet. `difficulty` is Eq. 3 with λ of Eq. 13; `average` fixes
            λ = ½; `width` and `depth` keep one pathway (width with the full FFN as shared expert).
        loop_mix: `hard` is one-hot with a straight-through gradient; `soft` mixes all loops.
        reuse_gains: `fixed` is the paper's form; `learned` starts exactly at the dense FFN.
        loop_rank: rank of what each loop after the first adds to the weights; None adds nothing.
        controller: who decides, by its name in the registry, see `ffn/registry.py`.
        normed_controller: the controller reads norm(H) instead of H.
        router_aux_loss_coef: weight of the balance loss in the training loss.
        reuse_layers: indices from 0 of the layers that are reused; the others run as in the dense
            model. None means all.
        gain_init: where learned gains start, for training from scratch; a conversion is exact at 0.
        loop_prior: ratio r of a prior of loop counts, π_ℓ ∝ r^(ℓ−1); 1 is uniform.
        loop_prior_coef: weight in the training loss of KL(mean exit distribution ‖ π), in nats.
    """

    variant: ClassVar[str] = "versatile"
    max_loops: int = 4
    fusion: Fusion = "difficulty"
    loop_mix: LoopMix = field(default="hard", metadata=ADJUSTABLE)
    reuse_gains: ReuseGains = "fixed"
    loop_rank: int | None = None
    controller: str = "linear"
    normed_controller: bool = False
    router_aux_loss_coef: float = field(default=1e-5, metadata=ADJUSTABLE)
    reuse_layers: Indices = None
    gain_init: float = 0.0
    loop_prior: float = field(default=1.0, metadata=ADJUSTABLE)
    loop_prior_coef: float = field(default=0.0, metadata=ADJUSTABLE)

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.loop_prior > 0:
            raise ConfigError(f"loop_prior={self.loop_prior!r} must be a positive ratio")
        if self.loop_prior_coef < 0:
            raise ConfigError(f"loop_prior_coef={self.loop_prior_coef!r} is negative")
        if self.loop_prior_coef and self.loops == 1:
            raise ConfigError(
                f"loop_prior_coef={self.loop_prior_coef!r} has no effect where all tokens take one "
                "loop: leave it out"
            )

    @property
    def loops(self) -> int:
        """L; one where only the width pathway is kept."""
        return self.max_loops if self.uses_depth else 1

    @property
    def uses_width(self) -> bool:
        """Whether the width pathway, and so a router, exists."""
        return self.fusion != "depth"

    @property
    def uses_depth(self) -> bool:
        """Whether the depth pathway, and so a loop predictor, exists."""
        return self.fusion != "width"

    @property
    def has_router(self) -> bool:
        """With a width pathway."""
        return self.uses_width

    def expert_size(self, d_hidden: int) -> int:
        """f: ⌊d_hidden / N⌋ unless it is given; 0 without a width pathway."""
        if not self.uses_width:
            return 0
        d_expert = super().expert_size(d_hidden)
        needed = self.num_experts * d_expert
        if needed > d_hidden:
            raise ConfigError(
                f"num_experts·d_expert = {self.num_experts}·{d_expert} = {needed} exceeds "
                f"d_hidden={d_hidden}: lower num_experts, or d_expert to at most "
                f"{d_hidden // self.num_experts}"
            )
        return d_expert

    def unused_neurons(self, d_hidden: int) -> int:
        """Of F neurons the width pathway uses N·f."""
        used = self.num_experts * self.expert_size(d_hidden)
        return d_hidden - used if self.uses_width else 0
