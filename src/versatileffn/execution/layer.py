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
        autocast: the dtype that autocast asked for; None where it is off.
    """

    norm: RMSNorm | AnyNorm
    mlp: FeedForward
    linears: Sequence[Tensor]
    autocast: torch.dtype | None

    @classmethod
    def of(cls, norm: Norm, mlp: FeedForward, like: Tensor) -> "Layer":
        """Read plain modules, casting weights to autocast's dtype where it is on.

        Args:
            norm, mlp: modules for which `reads_plain_weights` holds.
            like: hidden states; autocast is asked about their device.
        """
        device = like.device.type
        autocast = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else None
        weights = [linear.weight for linear in linears(mlp)]
        if autocast is not None and like.dtype != torch.float64:  # which it leaves alone
            weights = [weight.to(autocast) for weight in weights]
        known = RMSNorm.of(norm) or AnyNorm.of(cast(nn.Module, norm), autocast)
        return cls(known, mlp, weights, autocast)

    def with_weights(self, norm: Sequence[Tensor], linears: Sequence[Tensor]) -> "Layer":
        """The same layer, with weights that autograd has handed back; () to hold none."""
        return replace(self, norm=self.norm.with_weights(norm), linears=linears)

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
        if self.autocast is not None:
            x_RD = x_RD.to(self.down.dtype)
        return [F.linear(x_RD, weight) for weight in self.proj]
