"""φ and its derivative without the temporaries that autograd would make.

SwiGLU, what nearly every current model has, gets its own four lines; any other activation goes
through `activate` and autograd.

Legend: R rows (tokens), F d_hidden; `d_x` is the gradient of the loss in x.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from versatileffn.ffn.dense import FeedForward, activate


def is_swiglu(mlp: FeedForward) -> bool:
    """Whether φ is silu(gate)·up, in torch's spelling or in Transformers'."""
    silu = (
        mlp.act_fn is F.silu
        or isinstance(mlp.act_fn, nn.SiLU)
        or type(mlp.act_fn).__name__ == "SiLUActivation"
    )
    return silu and getattr(mlp, "gate_proj", None) is not None


def activate_in_place(mlp: FeedForward, projected_RF: Sequence[Tensor]) -> Tensor:
    """a = φ of its projections, which are overwritten where that saves memory, [R, F]."""
    if not is_swiglu(mlp):
        return activate(mlp, *projected_RF)
    gate_RF, up_RF = projected_RF
    return F.silu(gate_RF, inplace=True).mul_(up_RF)


class Activation:
    """φ of one loop in the backward pass: first its value, then its gradient.

    Args:
        mlp: says what φ is.
        projected_RF: gate and up, or up alone.
        a_RF: receives a.
        d_projected_RF: room for the gradients of the projections.
    """

    def __init__(
        self,
        mlp: FeedForward,
        projected_RF: Sequence[Tensor],
        a_RF: Tensor,
        d_projected_RF: Sequence[Tensor],
    ) -> None:
        self.projected_RF, self.d_projected_RF = projected_RF, d_projected_RF
        self.value_RF: Tensor | None = None
        if is_swiglu(mlp):
            (gate_RF, up_RF), (_, d_up_RF) = projected_RF, d_projected_RF
            torch.ops.aten.silu.out(gate_RF, out=d_up_RF)  # silu(gate) waits there for d_a
            torch.mul(d_up_RF, up_RF, out=a_RF)
            return
        with torch.enable_grad():
            self.leaves = tuple(p.detach().requires_grad_() for p in projected_RF)
            self.value_RF = activate(mlp, *self.leaves)
        a_RF.copy_(self.value_RF.detach())

    def backward(self, d_a_RF: Tensor) -> None:
        """Fill `d_projected_RF` from the gradient of a."""
        if self.value_RF is not None:
            grads = torch.autograd.grad(self.value_RF, self.leaves, d_a_RF)
            for out_RF, grad_RF in zip(self.d_projected_RF, grads, strict=True):
                out_RF.copy_(grad_RF)
            return
        (gate_RF, up_RF), (d_gate_RF, d_up_RF) = self.projected_RF, self.d_projected_RF
        d_up_RF.mul_(d_a_RF)
        torch.mul(d_a_RF, up_RF, out=d_gate_RF)
        torch.ops.aten.silu_backward.grad_input(d_gate_RF, gate_RF, grad_input=d_gate_RF)
