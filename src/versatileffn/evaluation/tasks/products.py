"""Float32 matrix products on a CPU by oneDNN, for who asks for them.

PyTorch's `linear` calls MKL, which leaves a part of some processors' arithmetic unused; oneDNN,
which comes with PyTorch too, doesn't, and is the slower one on others. The two round differently,
so nothing chooses between them but the user.

Legend: M rows, I inputs, O outputs.
"""

from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from versatileffn.errors import ConfigError


class OneDnnLinear(TorchFunctionMode):
    """Inside this context float32 linears on the CPU are computed by oneDNN. For inference."""

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        if func is nn.functional.linear and not kwargs and all(map(_fits, args)):
            return onednn_linear(*args)
        return func(*args, **(kwargs or {}))


def onednn_linear(x_MI: Tensor, weight_OI: Tensor, bias_O: Tensor | None = None) -> Tensor:
    """x Wᵀ + b, [..., I] -> [..., O], float32 on the CPU, without gradients."""
    product: Tensor = torch.ops.mkldnn._linear_pointwise(x_MI, weight_OI, bias_O, "none", [], "")
    return product


def _fits(given: Any) -> bool:
    plain = type(given) in (Tensor, nn.Parameter)
    return given is None or (
        plain and given.dtype == torch.float32 and given.device.type == "cpu" and given.numel() > 0
    )


def products(onednn: bool) -> AbstractContextManager[Any]:
    """Compute linears by oneDNN, or leave them as they are."""
    return OneDnnLinear() if onednn else nullcontext()


def check_onednn(device: torch.device, dtype: torch.dtype) -> None:
    """Raise ConfigError unless oneDNN can compute a model's products."""
    if dtype != torch.float32 or device.type != "cpu":
        raise ConfigError(
            f"--onednn is for float32 on a CPU, not {dtype} on {device.type}: leave it out"
        )
    if not hasattr(torch.ops.mkldnn, "_linear_pointwise"):
        raise ConfigError("this build of PyTorch lacks oneDNN's products: leave --onednn out")
