"""The balance loss.

Legend: M tokens, N num_experts, K top_k.
"""

import torch
from torch import Tensor


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
    weight_M = token_weights(mask, probs_MN)
    assigned_N = (weight_M[:, None] * chosen_MN).sum(0)
    probability_N = (weight_M[:, None] * probs_MN).sum(0)
    return num_experts * (assigned_N * probability_N).sum()


def token_weights(mask: Tensor | None, like_MN: Tensor) -> Tensor:
    """Weights that average over the tokens that count, [M]."""
    if mask is None:
        return like_MN.new_full(like_MN.shape[:1], 1 / max(like_MN.shape[0], 1))
    counted_M = mask.reshape(-1).to(like_MN)
    return counted_M / counted_M.sum().clamp_min(1)
