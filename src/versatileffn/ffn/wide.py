"""Linear maps whose results decide something: their sums are float32 whatever surrounds them.

bfloat16 has 8 bits, so among a few thousand logits some tie exactly, and a tie is decided by
position instead of content.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class WideLinear(nn.Linear):
    """A linear map without bias, computed in at least float32: under autocast, with half-precision
    weights, on half-precision inputs.

    Args:
        in_features, out_features: sizes.
    """

    def __init__(self, in_features: int, out_features: int) -> None:
        super().__init__(in_features, out_features, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """W x, [..., in] -> [..., out], float32 or float64."""
        x, weight = at_least_float32(x), at_least_float32(self.weight)
        device = x.device.type
        if device == "meta" or not torch.is_autocast_enabled(device):  # which "meta" doesn't know
            return F.linear(x, weight)
        with torch.autocast(device, enabled=False):
            return F.linear(x, weight)


def at_least_float32(values: Tensor) -> Tensor:
    """Widen half precision; leave float64 alone."""
    return values.float() if values.dtype.itemsize < 4 else values
