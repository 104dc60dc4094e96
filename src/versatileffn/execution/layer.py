"""An FFN as the packed passes use it: by calling its modules, or by reading its weights.

Legend: D d_model, F d_hidden, R rows (tokens).
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Protocol, Self, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from versatileffn.execution.activation import Phi
from versatileffn.execution.norms import AnyNorm, RMSNorm
from versatileffn.execution.plain import has_plain_linears
from versatileffn.ffn.view import FFNView, Norm, unchanged


class Layer(Protocol):
    """What a packed forward pass asks for."""

    @property
    def norm(self) -> Norm:
        """The norm before the FFN."""
        ...

    @property
    def phi(self) -> Phi:
        """φ, which leaves what it is given."""
        ...

    @property
    def scale(self) -> float:
        """r."""
        ...

    @property
    def b_out(self) -> Tensor | None:
        """W_out's bias, [D]."""
        ...

    def project(self, x_RD: Tensor) -> list[Tensor]:
        """W_proj x, one tensor for each linear map."""
        ...

    def activate(self, projected: Sequence[Tensor]) -> Tensor:
        """a = φ of these, which it may overwrite, [R, F]."""
        ...

    def down(self, a_RF: Tensor) -> Tensor:
        """W_out a and its bias, [R, D]."""
        ...


class CalledLayer:
    """Calls the modules, so that whatever wraps them takes part.

    Args:
        view: the FFN.
    """

    def __init__(self, view: FFNView) -> None:
        self.view, self.phi = view, Phi(view.act, view.gated)
        self.norm, self.scale, self.b_out = view.norm, view.scale, view.down_bias
        self.in_place = has_plain_linears(view)

    def project(self, x_RD: Tensor) -> list[Tensor]:
        """W_proj x."""
        return [linear(x_RD) for linear in self.view.proj]

    def activate(self, projected: Sequence[Tensor]) -> Tensor:
        """a, in memory that no hook may have kept."""
        if self.in_place:
            return self.phi.in_place(projected)
        a_RF = self.phi(projected)
        return a_RF.clone() if a_RF is projected[0] else a_RF

    def down(self, a_RF: Tensor) -> Tensor:
        """W_out a."""
        out: Tensor = self.view.down(a_RF)
        return out


@dataclass(frozen=True)
class ReadLayer:
    """The weights of an FFN, for the passes that differentiate by hand.

    Args:
        norm: the norm.
        phi: φ.
        w_proj, b_proj: weights [·, D] and biases of W_proj's linear maps.
        w_out, b_out: weight [D, F] and bias of W_out. All in the dtype of the matrix products.
        scale: r.
        autocast: the dtype that autocast asked for; None where it is off.
    """

    norm: RMSNorm | AnyNorm
    phi: Phi
    w_proj: Sequence[Tensor]
    b_proj: Sequence[Tensor | None]
    w_out: Tensor
    b_out: Tensor | None
    scale: float
    autocast: torch.dtype | None

    @classmethod
    def of(cls, view: FFNView, like: Tensor) -> Self:
        """Read plain modules, casting weights to autocast's dtype where it is on.

        Args:
            view: an FFN that merges and for which `why_called` has no reason.
            like: hidden states; autocast is asked about their device.
        """
        autocast = autocast_dtype(like)

        def read(tensor: Tensor | None) -> Tensor | None:
            if tensor is None or autocast is None or like.dtype == torch.float64:
                return tensor  # autocast leaves float64 alone
            return tensor.to(autocast)

        weights = [(read(linear.weight), read(linear.bias)) for linear in view.linears]  # type: ignore[arg-type]
        (*proj, out) = cast(list[tuple[Tensor, Tensor | None]], weights)
        module = nn.Identity() if view.norm is unchanged else cast(nn.Module, view.norm)
        norm = RMSNorm.of(module) or AnyNorm.of(module, autocast)
        return cls(
            norm, Phi(view.act, view.gated), [w for w, _ in proj], [b for _, b in proj], *out,
            view.scale, autocast,
        )  # fmt: skip

    @property
    def tensors(self) -> list[Tensor]:
        """What autograd is to differentiate, in the order of `with_tensors`."""
        found = [*self.norm.weights, *self.w_proj, *self.b_proj, self.w_out, self.b_out]
        return [tensor for tensor in found if tensor is not None]

    def with_tensors(self, tensors: Sequence[Tensor]) -> Self:
        """The same layer with the tensors that autograd has handed back."""
        given = iter(tensors)
        return replace(
            self,
            norm=self.norm.with_weights([next(given) for _ in self.norm.weights]),
            w_proj=[next(given) for _ in self.w_proj],
            b_proj=[None if bias is None else next(given) for bias in self.b_proj],
            w_out=next(given),
            b_out=None if self.b_out is None else next(given),
        )

    def project(self, x_RD: Tensor) -> list[Tensor]:
        """W_proj x."""
        if self.autocast is not None:
            x_RD = x_RD.to(self.w_out.dtype)
        return [F.linear(x_RD, w, b) for w, b in zip(self.w_proj, self.b_proj, strict=True)]

    def activate(self, projected: Sequence[Tensor]) -> Tensor:
        """a."""
        return self.phi.in_place(projected)

    def down(self, a_RF: Tensor) -> Tensor:
        """W_out a."""
        return F.linear(a_RF, self.w_out, self.b_out)


def autocast_dtype(like: Tensor) -> torch.dtype | None:
    """The dtype that autocast asks for on the device of `like`; None where it is off."""
    device = like.device.type
    return torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else None
