"""How many loops tokens may run at most, or what a loop costs them, as it is said at run time.

Legend: M tokens (or any leading shape), B sequences, L max_loops.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from versatileffn.errors import ConfigError, PlanError


@dataclass(frozen=True)
class Budget:
    """The most loops of each token, and what of it is known without looking at a tensor.

    Compiled graphs read the tensor alone, so they hold for every value.

    Args:
        loops: one number, [], or one for each sequence, [B], or token; int64.
        most: the largest of them.
    """

    loops: Tensor
    most: int

    @classmethod
    def of(cls, max_loops: "int | Tensor | Budget", largest: int) -> "Budget":
        """What a user gave, checked.

        Args:
            max_loops: a whole number, or a tensor of them.
            largest: L.

        Raises:
            ConfigError: it is none of 1 … L.
        """
        if isinstance(max_loops, Budget):
            return max_loops
        if isinstance(max_loops, bool) or not isinstance(max_loops, int | Tensor):
            raise ConfigError(
                f"max_loops={max_loops!r} must be a whole number, or a tensor with one for each "
                "sequence of the batch"
            )
        loops = torch.as_tensor(max_loops)
        if loops.is_floating_point() or loops.dtype == torch.bool:
            raise ConfigError(f"max_loops must hold whole numbers, not {loops.dtype}: use int64")
        if not loops.numel():
            raise ConfigError("max_loops is empty: give one number for each sequence")
        least, most = int(loops.min()), int(loops.max())
        if least < 1:
            raise ConfigError(
                f"max_loops={least} is too few: every token runs the FFN at least once, so give 1 "
                f"to {largest}"
            )
        if most > largest:
            raise ConfigError(
                f"max_loops={most} is more than the {largest} loops there are: give 1 to "
                f"{largest}, or None for no budget"
            )
        return cls(loops.long(), most)


def for_tokens(values: Tensor, lead: torch.Size) -> Tensor:
    """Values for tokens of a leading shape: [B] becomes [B, 1] for tokens [B, T]; [] stays.

    Raises:
        PlanError: they are for another batch.
    """
    extra = len(lead) - values.dim()
    fits = extra >= 0 and all(v in (1, n) for v, n in zip(values.shape, lead, strict=False))
    if values.dim() and not fits:
        raise PlanError(
            f"a budget of shape {tuple(values.shape)} given tokens of shape {tuple(lead)}: give "
            "one number, or one for each sequence of this batch"
        )
    return values.reshape(*values.shape, *[1] * extra) if values.dim() else values


def stopped_at(loop_probs_ML: Tensor, cap_M: Tensor) -> Tensor:
    """p of tokens that stop at a cap at the latest: what lies beyond it moves to it, [M, L].

    So min(ℓ, cap) is distributed where ℓ was by p; a p that has nothing beyond stays as it is, to
    the bit.

    Args:
        loop_probs_ML: p, one-hot or soft.
        cap_M: of each token, or [].
    """
    loops_L = torch.arange(1, loop_probs_ML.shape[-1] + 1, device=loop_probs_ML.device)
    cap_M1 = cap_M.to(loops_L.device)[..., None]
    before_ML = loops_L < cap_M1
    rest_M1 = loop_probs_ML.masked_fill(before_ML, 0).sum(-1, keepdim=True)
    return torch.where(before_ML, loop_probs_ML, rest_M1 * (loops_L == cap_M1))


def charged(logits_ML: Tensor, penalty: Tensor | None) -> Tensor:
    """Loop logits with a price on every loop after the first: logits − penalty·(ℓ − 1), [M, L].

    A token's likeliest loop never grows with the penalty.

    Args:
        logits_ML: W_loop·H.
        penalty: of every token, [], or each sequence, [B]; None for none.
    """
    if penalty is None:
        return logits_ML
    price_M1 = for_tokens(penalty.to(logits_ML), logits_ML.shape[:-1])[..., None]
    return logits_ML - price_M1 * torch.arange(logits_ML.shape[-1], device=logits_ML.device)
