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
        self,
        func: Any,
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        if func is nn.functional.linear and not kwargs and _fits(args):
            return onednn_linear(args[0], args[1], args[2] if len(args) > 2 else None)
        return func(*args, **(kwargs or {}))


def onednn_linear(x_MI: Tensor, weight_OI: Tensor, bias_O: Tensor | None = None) -> Tensor:
    """x Wᵀ + b, [..., I] -> [..., O], float32 on the CPU, without gradients."""
    product: Tensor = torch.ops.mkldnn._linear_pointwise(x_MI, weight_OI, bias_O, "none", [], "")
    return product


def _fits(args: tuple[Any, ...]) -> bool:
    plain = all(a is None or type(a) in (Tensor, nn.Parameter) for a in args)
    return plain and all(
        a is None or (a.dtype == torch.float32 and a.device.type == "cpu" and a.numel() > 0)
        for a in args
    )


def products(onednn: bool) -> AbstractContextManager[Any]:
    """Compute linears by oneDNN, or leave them as they are."""
    return OneDnnLinear() if onednn else nullcontext()


def check_onednn(weights: Tensor, dtype: torch.dtype) -> None:
    """Make sure that oneDNN can compute a model's products.

    Args:
        weights: one of the model's.
        dtype: what it computes in.

    Raises:
        ConfigError: it can't.
    """
    if dtype != torch.float32 or weights.device.type != "cpu":
        raise ConfigError(
            f"--onednn is for float32 on a CPU, not {dtype} on {weights.device.type}: leave it out"
        )
    if not hasattr(torch.ops.mkldnn, "_linear_pointwise"):
        raise ConfigError("this build of PyTorch lacks oneDNN's products: leave --onednn out")
