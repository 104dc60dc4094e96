"""What goes into and comes out of a backward pass.

Legend: M tokens, D d_model, L max_loops, N num_experts, R tokens still running; `d_x` is the
gradient of the loss in x.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Saved:
    """What a forward pass kept, its tokens in the order of loop counts.

    Args:
        start_MD: H₀.
        totals: U_ℓ after each loop.
        projected: what W_proj gave; empty to compute it again.
    """

    start_MD: Tensor
    totals: Sequence[Tensor]
    projected: Sequence[Tensor] = ()


@dataclass(frozen=True)
class Wanted:
    """Which gradients are asked for, of those that can be left out.

    Args:
        probs: of p; the forward pass ran all loops.
        kept: of 1 − λ.
        layer: of each of the layer's tensors.
    """

    probs: bool
    kept: bool
    layer: Sequence[bool]


@dataclass
class Gradients:
    """Gradients of the loss; None where there is nothing to differentiate, or nobody asked.

    Args:
        hidden: of H₀, [M, D], but for the residual connection, which isn't ours.
        probs: of p, [M, L], right up to a constant for each token.
        kept, shared, routed: of 1 − λ, λσ and λs, each [M, 1].
        gates: of g spread over the experts, [M, N].
        gains: of γ, [L].
        layer: of the layer's tensors, in its order.
    """

    hidden: Tensor
    probs: Tensor | None
    kept: Tensor | None
    shared: Tensor | None
    routed: Tensor | None
    gates: Tensor | None
    gains: Tensor | None
    layer: list[Tensor | None]

    def back_in_place(self, order_M: Tensor) -> "Gradients":
        """The same with tokens where they were before they were ordered."""
        inverse_M = torch.empty_like(order_M)
        inverse_M[order_M] = torch.arange(len(order_M), device=order_M.device)

        def back(grad: Tensor | None) -> Tensor | None:
            return None if grad is None else grad.index_select(0, inverse_M)

        return Gradients(
            self.hidden.index_select(0, inverse_M), back(self.probs), back(self.kept),
            back(self.shared), back(self.routed), back(self.gates), self.gains, self.layer,
        )  # fmt: skip

    def in_order(self) -> list[Tensor | None]:
        """As autograd wants them."""
        by_token = [self.hidden, self.probs, self.kept, self.shared, self.routed, self.gates]
        return [*by_token, self.gains, *self.layer]


def row_dots(a_RD: Tensor, b_RD: Tensor) -> Tensor:
    """Dot products of rows, [R]; summed in float32 and rounded to the factors' dtype."""
    return (a_RD * b_RD).sum(-1).to(torch.promote_types(a_RD.dtype, torch.float32))
