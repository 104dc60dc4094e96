"""Float32 matrix products on a CPU, by whichever of PyTorch's libraries is faster there.

PyTorch's `linear` calls MKL, which leaves half of some processors' arithmetic unused; oneDNN, which
comes with PyTorch too, doesn't, and is the slower one on others. So both are timed once, on one of
the model's own weights.

Legend: M rows, I inputs, O outputs.
"""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

TIMED_ROWS = 512
REPETITIONS = 3
GAIN = 1.1
"""How many times faster oneDNN must be to be used."""

Product = Callable[[Tensor, Tensor, Tensor | None], Tensor]


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


@contextmanager
def fast_products(use_onednn: bool) -> Iterator[None]:
    """Compute linears by oneDNN, or leave them as they are."""
    if not use_onednn:
        yield
        return
    with OneDnnLinear():
        yield


@torch.no_grad()
def onednn_is_faster(model: nn.Module) -> bool:
    """Whether oneDNN computes the model's largest inner linear faster than PyTorch's default.

    Args:
        model: on its device, in its precision.
    """
    linears = [m for m in model.modules() if isinstance(m, nn.Linear)]
    inner = [m for m in linears if type(m.weight) is nn.Parameter and m.weight.is_contiguous()]
    if not inner or not torch.backends.mkldnn.is_available():
        return False
    weight_OI = sorted((m.weight for m in inner), key=lambda w: w.numel())[len(inner) // 2]
    x_MI = torch.ones(TIMED_ROWS, weight_OI.shape[1], dtype=weight_OI.dtype)
    if not _fits((x_MI, weight_OI)):
        return False
    default: Product = nn.functional.linear
    try:
        seconds = [_seconds(p, x_MI, weight_OI) for p in (default, onednn_linear)]
    except (AttributeError, RuntimeError):  # a build of PyTorch without it
        return False
    return seconds[0] > GAIN * seconds[1]


def _seconds(product: Product, x_MI: Tensor, weight_OI: Tensor) -> float:
    """The least time of a few, after one to warm up."""
    product(x_MI, weight_OI, None)
    times = []
    for _ in range(REPETITIONS):
        began = time.perf_counter()
        product(x_MI, weight_OI, None)
        times.append(time.perf_counter() - began)
    return min(times)
