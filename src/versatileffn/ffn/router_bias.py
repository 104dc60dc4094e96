"""A bias on each expert, moved against its load, which evens out loads without a balance loss.

Source: Auxiliary-loss-free load balancing (arXiv 2408.15664).

Legend: M tokens (or any leading shape), N num_experts, K top_k.
"""

from typing import Self

import torch
from torch import Tensor, nn

from versatileffn.ffn.config import Routed


class RouterBias(nn.Module):
    """Experts are chosen by probability plus bias; gates are made without the bias.

    Loads are counted in each forward pass in training mode. `move`, after each optimizer step,
    makes an expert with more than the mean load less likely to be chosen, another more. Counting a
    pass twice, as checkpointing does, changes no sign. Padding counts, unlike in the balance loss:
    what is decided here doesn't know the mask.

    Args:
        num_experts: N.
        rate: by how much a bias moves, in units of probability.

    Attributes:
        bias: [N], from 0; saved with the weights.
        load: tokens that chose each expert since the last move, [N]; None before the first.
    """

    bias: Tensor

    def __init__(self, num_experts: int, rate: float) -> None:
        super().__init__()
        self.rate = rate
        self.load: Tensor | None = None
        self.register_buffer("bias", torch.zeros(num_experts))

    @classmethod
    def of(cls, config: Routed) -> Self | None:
        """What the config asks for."""
        rate: float = getattr(config, "router_bias_rate", 0.0)
        return cls(config.num_experts, rate) if rate else None

    def reset_parameters(self) -> None:
        """Set it to 0."""
        self.bias.zero_()

    def forward(self, router_logits: Tensor, top_k: int) -> Tensor:
        """The K experts of each token, [..., N] -> int64 [..., K]."""
        scores = router_logits.detach().softmax(-1) + self.bias
        experts = scores.topk(top_k, dim=-1).indices
        if self.training:
            chosen = experts.flatten()
            none = torch.zeros_like(self.bias)
            load = none.scatter_add(0, chosen, none.new_ones(chosen.shape))
            self.load = load if self.load is None else self.load + load
        return experts

    @torch.no_grad()
    def move(self) -> None:
        """Move each bias by the rate, against the load that all processes have counted."""
        if self.load is None:
            return
        load, self.load = self.load, None
        if torch.distributed.is_available() and torch.distributed.is_initialized():
            torch.distributed.all_reduce(load)
        self.bias += self.rate * (load.mean() - load).sign()
