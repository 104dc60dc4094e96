"""The balance loss, and what the report shows of loops and experts.

Legend: M tokens, N num_experts, K top_k, L max_loops.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from versatileffn.ffn.plan import ReusePlan


def balance_loss(router_logits: Tensor, top_k: int, mask: Tensor | None = None) -> Tensor:
    """N · Σ_i f_i P_i, the load-balancing loss of one layer; 1 when perfectly balanced.

    Source: Algorithm 1; Switch Transformer's loss, with the assignments of the K experts counted
    as shares so that its size doesn't depend on K.

    Args:
        router_logits: [..., N].
        top_k: K.
        mask: tokens that count (nonzero), of the leading shape; None counts all.

    Returns:
        a scalar, differentiable in the logits through P.
    """
    num_experts = router_logits.shape[-1]
    logits_MN = router_logits.reshape(-1, num_experts)
    probs_MN = logits_MN.softmax(-1)
    chosen_MN = torch.zeros_like(probs_MN).scatter(-1, logits_MN.topk(top_k, -1).indices, 1 / top_k)
    weight_M = _token_weights(mask, probs_MN)
    assigned_N = (weight_M[:, None] * chosen_MN).sum(0)
    probability_N = (weight_M[:, None] * probs_MN).sum(0)
    return num_experts * (assigned_N * probability_N).sum()


def _token_weights(mask: Tensor | None, like_MN: Tensor) -> Tensor:
    """Weights that average over the tokens that count, [M]."""
    if mask is None:
        return like_MN.new_full(like_MN.shape[:1], 1 / max(like_MN.shape[0], 1))
    counted_M = mask.reshape(-1).to(like_MN)
    return counted_M / counted_M.sum().clamp_min(1)


class LoopStatistics(NamedTuple):
    """How often the FFN is used.

    Args:
        mean_loops: mean of ℓ̂, loops per token.
        loop_share: share of the tokens with ℓ̂ = 1 … L, [L].
        mean_lam: mean of λ.
    """

    mean_loops: Tensor
    loop_share: Tensor
    mean_lam: Tensor


def loop_statistics(plan: ReusePlan) -> LoopStatistics:
    """Mean loops, share of each loop count, and mean λ over all tokens of a plan."""
    count_M = plan.loop_count.flatten()
    loop_share_L = torch.bincount(count_M - 1, minlength=plan.max_loops) / count_M.numel()
    return LoopStatistics(
        mean_loops=count_M.float().mean(),
        loop_share=loop_share_L,
        mean_lam=plan.lam.detach().float().mean(),
    )


def expert_statistics(plan: ReusePlan, num_experts: int) -> Tensor:
    """Share of the assignments that each expert received, [N]; sums to one.

    Raises:
        ValueError: the plan has no width pathway.
    """
    if plan.experts is None:
        raise ValueError("this plan has no width pathway: its fusion is `depth`")
    assigned = plan.experts.flatten()
    return torch.bincount(assigned, minlength=num_experts) / assigned.numel()
