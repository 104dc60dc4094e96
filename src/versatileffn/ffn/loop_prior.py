"""Priors of how deep tokens go: towards one the exits may be pulled, from one depths may be drawn.

Legend: M tokens, L max_loops.
"""

import torch
from torch import Tensor

from versatileffn.ffn.balance import token_weights


def geometric_prior(max_loops: int, ratio: float, like: Tensor) -> Tensor:
    """π_ℓ ∝ ratio^(ℓ−1), [L]: 1 is uniform, below 1 prefers few loops.

    Source: PonderNet (arXiv 2107.05407), whose prior of halting is geometric, cut off at L.

    Args:
        max_loops: L.
        ratio: of each loop's share to that of the loop before, > 0.
        like: whose dtype and device it has.
    """
    loops_L = torch.arange(max_loops, dtype=like.dtype, device=like.device)
    return torch.softmax(loops_L * torch.tensor(ratio, dtype=torch.float64).log().to(like), dim=0)


def prior_loss(loop_logits: Tensor, ratio: float, mask: Tensor | None = None) -> Tensor:
    """KL(q ‖ π) of the mean exit distribution q to the prior, a scalar in nats.

    q is the mean of softmax(logits) over tokens: with Gumbel noise, the chance of each loop count,
    whatever τ. Single tokens may be as certain as they like; the layer as a whole may not.

    Args:
        loop_logits: [..., L]; −∞ where a loop is closed.
        ratio: of the prior, see `geometric_prior`.
        mask: tokens that count (nonzero), of the leading shape; None counts all.
    """
    probs_ML = loop_logits.reshape(-1, loop_logits.shape[-1]).softmax(-1)
    exits_L = (token_weights(mask, probs_ML)[:, None] * probs_ML).sum(0)
    prior_L = geometric_prior(exits_L.shape[0], ratio, exits_L)
    # A share of 0 adds nothing, and its logarithm may have no gradient of infinity.
    smallest = torch.finfo(exits_L.dtype).tiny
    return (exits_L * (exits_L.clamp_min(smallest).log() - prior_L.log())).sum()


def draw_loops(logits: Tensor, ratio: float) -> Tensor:
    """Loop counts drawn from the prior among the open loops, whatever the logits say of them.

    Args:
        logits: [..., L]; −∞ where a loop is closed.
        ratio: of the prior, see `geometric_prior`.

    Returns:
        int64, 1 to L, of the leading shape.
    """
    prior_L = geometric_prior(logits.shape[-1], ratio, logits)
    shares_ML = torch.where(logits.isneginf(), 0.0, prior_L).reshape(-1, logits.shape[-1])
    return shares_ML.multinomial(1).reshape(logits.shape[:-1]) + 1
