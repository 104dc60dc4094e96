"""What the layers decided, on its way from the layers to whoever asked."""

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
        losses = []
        for decided in self.made:
            if isinstance(decided, ReusePlan):
                shape = decided.loop_count.shape
            else:
                shape = decided.router_logits.shape[:-1]
            # A mask of another shape isn't one of padding, or speaks of cached tokens, too.
            fits = attention_mask is not None and attention_mask.shape == shape
            loss = decided.balance_loss(attention_mask if fits else None)
            if loss is not None:
                losses.append(loss)
        if not losses:
            return None
        return torch.stack([loss.to(losses[0].device) for loss in losses]).mean()
