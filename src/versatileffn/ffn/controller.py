"""The controller decides: it turns hidden states into a ReusePlan and owns the only new matrices.

Legend: M tokens, D d_model, K top_k, L max_loops, N num_experts.
"""

import torch
from torch import Tensor, nn

from versatileffn.ffn.budget import charged
from versatileffn.ffn.config import Versatile
from versatileffn.ffn.experts import ExpertSlices
from versatileffn.ffn.loop_prior import draw_loops
from versatileffn.ffn.one_loop import OneLoop, share_of_one_loop
from versatileffn.ffn.open_loops import OpenLoops
from versatileffn.ffn.plan import ReusePlan, width_share
from versatileffn.ffn.plan_fields import one_hot_loops
from versatileffn.ffn.registry import register_controller
from versatileffn.ffn.router_bias import RouterBias
from versatileffn.ffn.wide import WideLinear, at_least_float32

START_TAU = 5.0
"""τ of a controller that nobody has annealed, the paper's first."""


@register_controller("linear")
class LinearController(OpenLoops, nn.Module):
    """The paper's: router and loop predictor, one linear map each. Source: Eq. 7, 10, 12, 13.

    Both read what they are given: H, or norm(H) from a layer with `normed_controller`. Logits and
    softmaxes are computed in at least float32.

    Args:
        d_model: D.
        d_hidden: F, for the bounds of the virtual experts.
        config: the layer's settings.

    Attributes:
        router: D -> N; None with fusion `depth`.
        router_bias: evens out the experts' loads; None unless the config asks for it.
        loop_head: D -> L; None with fusion `width`.
        tau: temperature τ of Eq. 10. Training anneals it, `soft` mixes use it at inference too.
        open_loops: the most loops that a token may take for now; L unless training opens them one
            after the other. λ counts all L.
        noise: whether training draws Gumbel noise where none is given; evaluation never does.
        sampled_loops: ratio of the prior from which training draws depths by lot, see
            `ffn/loop_prior.py`; None asks the loop predictor.
        loop_penalty: what each loop after the first costs, see `charged`; None for nothing.
    """

    noise: bool = True
    sampled_loops: float | None = None
    loop_penalty: Tensor | None = None

    def __init__(self, d_model: int, d_hidden: int, config: Versatile) -> None:
        super().__init__()
        self.config, self.tau, self.open_loops = config, START_TAU, config.max_loops
        self.slices: ExpertSlices | None = None
        self.router: WideLinear | None = None
        self.loop_head: WideLinear | None = None
        self.router_bias = RouterBias.of(config)
        if config.uses_width:
            self.slices = ExpertSlices(config.num_experts, config.expert_size(d_hidden), d_hidden)
            self.router = WideLinear(d_model, config.num_experts)
        if config.uses_depth:
            self.loop_head = WideLinear(d_model, config.max_loops)
        self.reset_parameters()

    @torch.no_grad()
    def reset_parameters(self, std: float = 0.02) -> None:
        """Draw the linear maps from N(0, std²)."""
        for linear in (self.router, self.loop_head):
            if linear is not None:
                nn.init.normal_(linear.weight, std=std)
        if self.router_bias is not None:
            self.router_bias.reset_parameters()

    def forward(self, hidden: Tensor, gumbel_noise: Tensor | None = None) -> ReusePlan:
        """Decide for each token.

        Args:
            hidden: what the controller reads, H after attention, [..., D].
            gumbel_noise: noise added to the loop logits, [..., L]. None draws it in training mode
                and adds none in evaluation mode (Algorithm 2), or where `noise` is off.

        Returns:
            the plan, with the leading shape of `hidden`.
        """
        wide = at_least_float32(hidden)  # once, as autograd keeps it for each linear map
        loop_logits = None
        if self.loop_head is not None:
            loop_logits = wide_logits(self.loop_head, hidden, wide)
            loop_logits = charged(self.among_open(loop_logits), self.loop_penalty)
        plan = self._decide_depth(wide, loop_logits, gumbel_noise)
        if self.router is None:
            return plan
        plan.router_logits = plan.balance_logits = wide_logits(self.router, hidden, wide)
        plan.balance_top_k = self.config.top_k
        plan.gates, plan.experts = select_experts(
            plan.router_logits, self.config.top_k, self.router_bias
        )
        plan.slices = self.slices
        plan.shared = 1.0 if self.config.fusion == "width" else 0.0
        return plan

    def one_loop(self, hidden: Tensor, learned: bool, width_gain: Tensor | None) -> OneLoop:
        """What the plan of tokens comes to that may loop once only; not for training.

        Args:
            hidden: as `forward`'s.
            learned: the layer has gains of its own.
            width_gain: s, [1]; None means 1.
        """
        rest, lam = self.shares_of_one_loop(learned)
        if self.router is None or not lam:
            return OneLoop(rest)
        logits = wide_logits(self.router, hidden, at_least_float32(hidden))
        gates, experts = select_experts(logits, self.config.top_k, self.router_bias)
        gates = gates if lam == 1 else gates.mul_(lam)
        gates = gates if width_gain is None else gates.mul_(width_gain)
        return OneLoop(rest, gates, experts, self.slices)

    def shares_of_one_loop(self, learned: bool) -> tuple[float, float]:
        """(1 − λ) + λσ and λ of such tokens."""
        fusion = self.config.fusion
        lam = share_of_one_loop(fusion, self.config.loops)
        return 1.0 if learned or fusion == "width" else 1 - lam, lam

    def _decide_depth(
        self, wide: Tensor, logits: Tensor | None, gumbel_noise: Tensor | None
    ) -> ReusePlan:
        """Loop counts, their probabilities and λ."""
        fusion = self.config.fusion
        if logits is None:
            ones = wide.new_ones(wide.shape[:-1])
            return ReusePlan(ones.long(), ones.unsqueeze(-1), lam=ones, fusion=fusion)
        if self.sampled_loops is not None:
            return self._drawn(logits, self.sampled_loops)
        if gumbel_noise is None and self.training and self.noise:
            gumbel_noise = sample_gumbel(logits)
        probs = loop_probabilities(logits, self.tau, gumbel_noise)
        loop_count = probs.argmax(-1) + 1
        hard = self.config.loop_mix == "hard"
        if hard:
            probs = straight_through(probs, loop_count)
        lam = width_share(fusion, probs)
        return ReusePlan(loop_count, probs, lam, hard, fusion, loop_logits=logits)

    def _drawn(self, logits: Tensor, ratio: float) -> ReusePlan:
        """Depths by lot in training; in evaluation, as deep as is open."""
        if self.training:
            loop_count = draw_loops(logits, ratio)
        else:
            loop_count = torch.full_like(logits[..., 0], self.open_loops, dtype=torch.int64)
        probs = one_hot_loops(loop_count, logits.shape[-1]).to(logits.dtype)
        fusion = self.config.fusion
        lam = width_share(fusion, probs)
        return ReusePlan(loop_count, probs, lam, fusion=fusion, loop_logits=logits)


class ConstantController(nn.Module):
    """Decides the same for every token: the dense FFN (k = 1) and the k-Loop baseline.

    Args:
        num_loops: k.
    """

    def __init__(self, num_loops: int) -> None:
        super().__init__()
        self.num_loops = num_loops

    def forward(self, hidden: Tensor) -> ReusePlan:
        """k loops for each token of hidden states [..., D], and no width pathway."""
        loop_count = hidden.new_full(hidden.shape[:-1], self.num_loops, dtype=torch.int64)
        wide = torch.promote_types(hidden.dtype, torch.float32)
        probs = one_hot_loops(loop_count, self.num_loops).to(wide)
        lam = hidden.new_zeros(hidden.shape[:-1], dtype=wide)
        return ReusePlan(loop_count, probs, lam, fusion="depth", uniform=self.num_loops)

    def one_loop(self, hidden: Tensor, learned: bool, width_gain: Tensor | None) -> OneLoop:
        """What the plan of tokens comes to that may loop once only: the dense FFN."""
        return OneLoop()


def wide_logits(linear: nn.Module, hidden: Tensor, wide: Tensor) -> Tensor:
    """What a linear map says that decides, in at least float32.

    Args:
        linear: a `WideLinear`, or an adapter or a quantized map in its place, which expects, and
            returns, dtypes of its own.
        hidden: what it reads, [..., D].
        wide: the same, in at least float32.
    """
    return at_least_float32(linear(wide if isinstance(linear, WideLinear) else hidden))


def loop_probabilities(logits_ML: Tensor, tau: float, gumbel_noise_ML: Tensor | None) -> Tensor:
    """p = softmax((W_loop·H + gumbel)/τ), [M, L]. Source: Eq. 10, before the straight-through."""
    noisy_ML = logits_ML if gumbel_noise_ML is None else logits_ML + gumbel_noise_ML
    return torch.softmax(noisy_ML / tau, dim=-1)


def straight_through(probs_ML: Tensor, loop_count_M: Tensor) -> Tensor:
    """One-hot in value, soft in gradient, [M, L]. Source: Eq. 10.

    The soft part is subtracted from itself first, so that the result is exactly 0 or 1.
    """
    one_hot_ML = one_hot_loops(loop_count_M, probs_ML.shape[-1]).to(probs_ML.dtype)
    return one_hot_ML + (probs_ML - probs_ML.detach())


def select_experts(
    router_logits_MN: Tensor, top_k: int, bias: RouterBias | None = None
) -> tuple[Tensor, Tensor]:
    """Gates and indices of the K best experts, each [M, K]. Source: Eq. 7.

    The softmax runs over the selected logits, so the gates sum to one. Over a single logit it
    would be constant and the router would never learn: K = 1 takes the probability over all N.
    A bias has its say in who is best, and none in the gates.
    """
    if bias is None:
        selected_MK, experts_MK = router_logits_MN.topk(top_k, dim=-1)
    else:
        experts_MK = bias(router_logits_MN, top_k)
        selected_MK = router_logits_MN.gather(-1, experts_MK)
    if top_k == 1:
        return router_logits_MN.softmax(-1).gather(-1, experts_MK), experts_MK
    return selected_MK.softmax(-1), experts_MK


def sample_gumbel(like: Tensor) -> Tensor:
    """Standard Gumbel noise of the shape, dtype and device of `like`: −log(Exp(1))."""
    smallest = torch.finfo(like.dtype).tiny
    return -torch.empty_like(like).exponential_().clamp_min_(smallest).log()
