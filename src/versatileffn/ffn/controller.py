"""The controller decides: it turns hidden states into a ReusePlan and owns the only new parameters.

Legend: M tokens, D d_model, K top_k, L max_loops, N num_experts.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from versatileffn.errors import ConfigError, PlanError
from versatileffn.ffn.config import FFNConfig
from versatileffn.ffn.experts import ExpertSlices
from versatileffn.ffn.gains import with_first_gain
from versatileffn.ffn.plan import ReusePlan, expected_loops
from versatileffn.ffn.wide import WideLinear, at_least_float32


class ReuseController(nn.Module):
    """Router and loop predictor. Source: Eq. 7, 10, 12, 13.

    Both are linear, without bias, and read what they are given: H, or norm(H) from a layer with
    `normed_controller`. Logits and softmaxes are computed in at least float32.

    Args:
        d_model: D.
        d_hidden: F, for the bounds of the virtual experts.
        config: the variant's settings.

    Attributes:
        router: D -> N; None with fusion `depth`.
        loop_head: D -> L; None with fusion `width`.
        loop_gains: γ₂ … γ_L, [L − 1]; None unless gains are learned.
        width_gain: s, [1] (FSDP2 shards no scalars); None unless gains are learned.
        tau: temperature τ of Eq. 10, moved by the training schedule. It is a setting, not a
            weight: a model saves it in its config, a layer on its own is rebuilt with `tau=`.
    """

    def __init__(self, d_model: int, d_hidden: int, config: FFNConfig) -> None:
        super().__init__()
        if not isinstance(config, FFNConfig):
            raise ConfigError(f"config={config!r} must be an FFNConfig")
        self.config = config
        self.tau = config.tau
        self.slices: ExpertSlices | None = None
        self.router: WideLinear | None = None
        self.loop_head: WideLinear | None = None
        if config.uses_width:
            d_expert = config.expert_size(d_hidden)
            self.slices = ExpertSlices(config.num_experts, d_expert, d_hidden)
            self.router = WideLinear(d_model, config.num_experts)
        if config.uses_depth:
            self.loop_head = WideLinear(d_model, config.max_loops)

        learned = config.reuse_gains == "learned"
        learns_loops = learned and config.uses_depth and config.max_loops > 1
        learns_width = learned and config.uses_width
        self.loop_gains = nn.Parameter(torch.zeros(config.max_loops - 1)) if learns_loops else None
        self.width_gain = nn.Parameter(torch.zeros(1)) if learns_width else None

    @torch.no_grad()
    def reset_parameters(self, std: float = 0.02) -> None:
        """Draw the linear maps from N(0, std²) and return every gain to 0."""
        for linear in (self.router, self.loop_head):
            if linear is not None:
                nn.init.normal_(linear.weight, std=std)
        for gain in (self.loop_gains, self.width_gain):
            if gain is not None:
                nn.init.zeros_(gain)

    def forward(self, hidden: Tensor, gumbel_noise: Tensor | None = None) -> ReusePlan:
        """Decide for each token.

        Args:
            hidden: what the controller reads, H after attention, [..., D].
            gumbel_noise: noise added to the loop logits, [..., L]. None draws it in training mode
                and adds none in evaluation mode (Algorithm 2).

        Returns:
            the plan, with the leading shape of `hidden`.
        """
        wide = at_least_float32(hidden)  # once, as autograd keeps it for each linear map

        def logits(linear: nn.Module) -> Tensor:
            # An adapter or a quantized map in its place expects, and returns, dtypes of its own.
            return at_least_float32(linear(wide if isinstance(linear, WideLinear) else hidden))

        loop_logits = None if self.loop_head is None else logits(self.loop_head)
        plan = self._decide_depth(wide, loop_logits, gumbel_noise)
        if self.router is None:
            return plan
        router_logits = logits(self.router)
        plan.router_logits = router_logits
        plan.gates, plan.experts = select_experts(router_logits, self.config.top_k)
        plan.slices = self.slices
        plan.width_gain = self.width_gain
        if self.config.fusion == "width" or self.config.reuse_gains == "learned":
            plan.shared = 1.0
        return plan

    def _decide_depth(
        self, wide: Tensor, logits: Tensor | None, gumbel_noise: Tensor | None
    ) -> ReusePlan:
        """Loop counts, their probabilities and λ."""
        if logits is None:
            ones = wide.new_ones(wide.shape[:-1])
            return ReusePlan(ones.long(), loop_probs=ones.unsqueeze(-1), lam=ones)
        if gumbel_noise is None and self.training:
            gumbel_noise = sample_gumbel(logits)
        probs = loop_probabilities(logits, self.tau, gumbel_noise)
        loop_count = probs.argmax(-1) + 1
        hard = self.config.loop_mix == "hard"
        if hard:
            probs = straight_through(probs, loop_count)
        return ReusePlan(
            loop_count=loop_count,
            loop_probs=probs,
            lam=self._width_share(probs),
            hard=hard,
            loop_gains=None if self.loop_gains is None else with_first_gain(self.loop_gains),
            loop_logits=logits,
        )

    def check_fit(self, plan: ReusePlan) -> None:
        """Refuse a plan that a layer of other sizes made.

        Raises:
            PlanError: its L or its experts aren't this controller's.
        """
        max_loops = self.config.max_loops if self.config.uses_depth else 1
        if plan.max_loops != max_loops:
            raise PlanError(
                f"plan for max_loops={plan.max_loops} given to a layer with max_loops={max_loops}: "
                "make it with this layer's controller"
            )
        if plan.slices is not None and plan.slices != self.slices:
            raise PlanError(
                f"plan for {plan.slices} given to a layer with {self.slices}: "
                "make it with this layer's controller"
            )

    def _width_share(self, loop_probs: Tensor) -> Tensor:
        """λ, the weight of the width pathway. Source: Eq. 13; ½ for plain averaging."""
        max_loops = loop_probs.shape[-1]
        if self.config.fusion == "difficulty":
            return (max_loops - expected_loops(loop_probs)) / max_loops
        constant = 0.5 if self.config.fusion == "average" else 0.0
        return loop_probs.new_full(loop_probs.shape[:-1], constant)


def loop_probabilities(logits_ML: Tensor, tau: float, gumbel_noise_ML: Tensor | None) -> Tensor:
    """p = softmax((W_loop·H + gumbel)/τ), [M, L]. Source: Eq. 10, before the straight-through."""
    noisy_ML = logits_ML if gumbel_noise_ML is None else logits_ML + gumbel_noise_ML
    return torch.softmax(noisy_ML / tau, dim=-1)


def straight_through(probs_ML: Tensor, loop_count_M: Tensor) -> Tensor:
    """One-hot in value, soft in gradient, [M, L]. Source: Eq. 10.

    The soft part is subtracted from itself first, so that the result is exactly 0 or 1.
    """
    one_hot_ML = F.one_hot(loop_count_M - 1, probs_ML.shape[-1]).to(probs_ML.dtype)
    return one_hot_ML + (probs_ML - probs_ML.detach())


def select_experts(router_logits_MN: Tensor, top_k: int) -> tuple[Tensor, Tensor]:
    """Gates and indices of the K best experts, each [M, K]. Source: Eq. 7.

    The softmax runs over the selected logits, so the gates sum to one. Over a single logit it
    would be constant and the router would never learn: K = 1 takes the probability over all N.
    """
    selected_MK, experts_MK = router_logits_MN.topk(top_k, dim=-1)
    if top_k == 1:
        return router_logits_MN.softmax(-1).gather(-1, experts_MK), experts_MK
    return selected_MK.softmax(-1), experts_MK


def sample_gumbel(like: Tensor) -> Tensor:
    """Standard Gumbel noise of the shape, dtype and device of `like`: −log(Exp(1))."""
    smallest = torch.finfo(like.dtype).tiny
    return -torch.empty_like(like).exponential_().clamp_min_(smallest).log()
