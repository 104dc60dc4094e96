"""What the layers decided, on its way from the layers to whoever asked."""

from collections.abc import Sequence

import torch
from torch import Tensor

from versatileffn.ffn.moe import Routing
from versatileffn.ffn.plan import ReusePlan


class Decisions:
    """Receives what each layer decided, from the layer that carried it out.

    It travels as an argument, and as an object of its own: whatever copies or casts a layer's
    arguments (FSDP, device maps) leaves it alone.

    Attributes:
        made: one decision for each layer.
        complete: the forward pass is over.
        without_gradient: a layer ran without gradients.
    """

    def __init__(self) -> None:
        self.made: list[ReusePlan | Routing] = []
        self.complete = self.without_gradient = False

    def add(self, decided: ReusePlan | Routing) -> None:
        """Take one layer's decision."""
        if self.complete:  # checkpointing runs a layer again in the backward pass
            return
        self.made.append(decided)
        self.without_gradient |= not torch.is_grad_enabled()

    def router_logits(self) -> tuple[Tensor, ...] | None:
        """One [M, N] for each layer with a router, as everywhere in Transformers; None without."""
        logits = [decided.router_logits for decided in self.made]
        return tuple(each.flatten(0, -2) for each in logits if each is not None) or None

    def balance_loss(self, attention_mask: Tensor | None) -> Tensor | None:
        """The balance loss, averaged over layers; None where nothing is chosen.

        Args:
            attention_mask: 0 for padding, [B, T]; other masks count as none.
        """
        return _mean([each.balance_loss(_fitting(attention_mask, each)) for each in self.made])

    def prior_loss(self, ratio: float, attention_mask: Tensor | None) -> Tensor | None:
        """How far exits are from a prior, averaged over layers; None where no depth is chosen.

        Args:
            ratio: of the prior, see `ffn/loop_prior.py`.
            attention_mask: as of `balance_loss`.
        """
        plans = [each for each in self.made if isinstance(each, ReusePlan)]
        return _mean([p.prior_loss(ratio, _fitting(attention_mask, p)) for p in plans])


def _fitting(attention_mask: Tensor | None, decided: ReusePlan | Routing) -> Tensor | None:
    """The mask, if it is one of these tokens' padding and doesn't speak of cached ones, too."""
    of = decided.loop_count if isinstance(decided, ReusePlan) else decided.router_logits[..., 0]
    fits = attention_mask is not None and attention_mask.shape == of.shape
    return attention_mask if fits else None


def _mean(losses: Sequence[Tensor | None]) -> Tensor | None:
    """Over the layers that have one, wherever these lie; None without."""
    there = [loss for loss in losses if loss is not None]
    return torch.stack([loss.to(there[0].device) for loss in there]).mean() if there else None
