"""φ and its derivative without the temporaries that autograd would make.

SwiGLU, what nearly every current model has, gets its own four lines; any other activation goes
through `phi` and autograd.

Legend: R rows (tokens), F d_hidden; `d_x` is the gradient of the loss in x.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from versatileffn.ffn.view import Activation


@dataclass(frozen=True)
class Phi:
    """φ of an FFN.

    Args:
        act, gated: see `FFNView`.
    """

    act: Activation
    gated: bool

    @property
    def is_swiglu(self) -> bool:
        """Whether φ is silu(gate)·up, in torch's spelling or in Transformers'."""
        silu = (
            self.act is F.silu
            or isinstance(self.act, nn.SiLU)
            or type(self.act).__name__ == "SiLUActivation"
        )
        return silu and self.gated

    def halves(self, projected: Sequence[Tensor]) -> Sequence[Tensor]:
        """Gate (if any) and up, each [R, F], where one linear map may give both."""
        if self.gated and len(projected) == 1:
            return projected[0].chunk(2, dim=-1)
        return projected

    def __call__(self, projected: Sequence[Tensor]) -> Tensor:
        """a from what W_proj gave, [R, F]."""
        first, *second = self.halves(projected)
        return self.act(first) * second[0] if second else self.act(first)

    def in_place(self, projected: Sequence[Tensor]) -> Tensor:
        """a, where W_proj's output may be overwritten to save memory, [R, F]."""
        if not self.is_swiglu:
            return self(projected)
        gate_RF, up_RF = self.halves(projected)
        return F.silu(gate_RF, inplace=True).mul_(up_RF)


class PhiBackward:
    """φ of one loop in the backward pass: first its value, then its gradient.

    Args:
        phi: φ.
        projected: what W_proj gave.
        a_RF: receives a.
        d_projected: room for the gradients of `projected`, alike.
    """

    def __init__(
        self, phi: Phi, projected: Sequence[Tensor], a_RF: Tensor, d_projected: Sequence[Tensor]
    ) -> None:
        self.projected, self.d_projected = phi.halves(projected), phi.halves(d_projected)
        self.value_RF: Tensor | None = None
        if phi.is_swiglu:
            (gate_RF, up_RF), (_, d_up_RF) = self.projected, self.d_projected
            torch.ops.aten.silu.out(gate_RF, out=d_up_RF)  # silu(gate) waits there for d_a
            torch.mul(d_up_RF, up_RF, out=a_RF)
            return
        with torch.enable_grad():
            self.leaves = tuple(p.detach().requires_grad_() for p in self.projected)
            self.value_RF = Phi(phi.act, len(self.leaves) == 2)(self.leaves)
        a_RF.copy_(self.value_RF.detach())

    def __call__(self, d_a_RF: Tensor) -> None:
        """Fill `d_projected` from the gradient of a."""
        if self.value_RF is not None:
            grads = torch.autograd.grad(self.value_RF, self.leaves, d_a_RF)
            for out_RF, grad_RF in zip(self.d_projected, grads, strict=True):
                out_RF.copy_(grad_RF)
            return
        (gate_RF, up_RF), (d_gate_RF, d_up_RF) = self.projected, self.d_projected
        d_up_RF.mul_(d_a_RF)
        torch.mul(d_a_RF, up_RF, out=d_gate_RF)
        torch.ops.aten.silu_backward.grad_input(d_gate_RF, gate_RF, grad_input=d_gate_RF)
