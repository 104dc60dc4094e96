"""From logits to nats: the one place where a prediction is scored."""

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy


def target_nats(logits_SV: Tensor, targets_S: Tensor) -> Tensor:
    """Negative log-likelihood of each target, in nats, at float32 or better.

    Args:
        logits_SV: scores of every token at S positions, any float dtype.
        targets_S: the token that followed each.

    Returns:
        float64 of shape (S,), on the device of the logits.
    """
    wide_SV = logits_SV.to(torch.promote_types(logits_SV.dtype, torch.float32))
    return cross_entropy(wide_SV, targets_S, reduction="none").double()
