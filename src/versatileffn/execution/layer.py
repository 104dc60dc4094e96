"""A layer as the packed training pass reads it: its norm, its φ and its weights as tensors.

Legend: D d_model, F d_hidden, R rows (tokens).
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from versatileffn.execution.norms import AnyNorm, RMSNorm
from versatileffn.ffn.dense import FeedForward, Norm, linears


@dataclass(frozen=True)
class Layer:
    """What there is to multiply with.

    Args:
        norm: the norm.
        mlp: says what φ is; its weights are not read.
        linears: gate (if any) and up, each [F, D], and down, [D, F], in the dtype of the matrix
            products.
    """

    norm: RMSNorm | AnyNorm
    mlp: FeedForward
    linears: Sequence[Tensor]

    @classmethod
    def of(cls, norm: Norm, mlp: FeedForward, like: Tensor) -> "Layer":
        """Read plain modules, casting weights to autocast's dtype where it is on.

        Args:
            norm, mlp: modules for which `reads_plain_weights` holds.
            like: hidden states; autocast is asked about their device.
        """
        known = RMSNorm.of(norm)
        cast_to = autocast_dtype(like.device.type)
        weights = [linear.weight for linear in linears(mlp)]
        if cast_to is not None:
            weights = [weight.to(cast_to) for weight in weights]
        return cls(known or AnyNorm(cast(nn.Module, norm)), mlp, weights)

    def with_linears(self, linears: Sequence[Tensor]) -> "Layer":
        """The same layer, with weights that autograd has handed back."""
        return replace(self, linears=linears)

    @property
    def proj(self) -> Sequence[Tensor]:
        """Gate and up, or up alone."""
        return self.linears[:-1]

    @property
    def down(self) -> Tensor:
        """W_out, [D, F]."""
        return self.linears[-1]

    def project(self, x_RD: Tensor) -> list[Tensor]:
        """W_proj x, each [R, F]."""
        x_RD = x_RD.to(self.down.dtype)
        return [F.linear(x_RD, weight) for weight in self.proj]


def autocast_dtype(device: str) -> torch.dtype | None:
    """What autocast runs matrix products in on this kind of device; None where it is off."""
    return torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else None
