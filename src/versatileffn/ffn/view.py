"""What an executor may know of a feed-forward network, whatever its family calls the parts.

    x = norm(H)    a = φ(W_proj x)    F(H) = H + r·post(W_out a)

Legend: D d_model, F d_hidden; leading dimensions are free. Loops count from 0 here.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple, Protocol

from torch import Tensor, nn

Norm = Callable[[Tensor], Tensor]
Activation = Callable[[Tensor], Tensor]


def unchanged(x: Tensor) -> Tensor:
    """A norm that isn't there, or that somebody else applies."""
    return x


class LoopWeights(Protocol):
    """What a loop adds to the linear maps, see `ffn/loop_weights.py`."""

    def residual(self, loop: int, index: int, x: Tensor) -> Tensor | None:
        """What to add to the `index`-th linear map of x in this loop; None for nothing."""
        ...


class FFNView(NamedTuple):
    """norm → project → φ → down → post-norm → scale.

    The linears are called, never read, so adapters and quantized weights take part; executors that
    read weights first make sure that these are plain.

    Args:
        norm: the norm before the FFN; `unchanged` where there is none.
        proj: W_proj as linear maps: up; or gate and up; or both fused into one.
        act: φ is act(gate)·up where gated, else act(up).
        down: W_out.
        gated: there is a gate.
        post_norm: the norm after W_out; None where there is none.
        scale: r, which the family multiplies the FFN's output by on its way to the residual
            stream; `update` leaves it out, `state` puts it in.
        loop_weights: weights that differ by loop; None where all loops share them.
    """

    norm: Norm
    proj: Sequence[nn.Module]
    act: Activation
    down: nn.Module
    gated: bool = True
    post_norm: Norm | None = None
    scale: float = 1.0
    loop_weights: LoopWeights | None = None

    @property
    def merges(self) -> bool:
        """Whether W_out of a sum is the sum of W_out: nothing follows it that isn't linear, and it
        is the same in every loop. One product then serves both pathways."""
        return self.post_norm is None and self.loop_weights is None

    @property
    def linears(self) -> list[nn.Module]:
        """W_proj and W_out."""
        return [*self.proj, self.down]

    @property
    def down_bias(self) -> Tensor | None:
        """W_out's bias, [D]; None without one. A method in torch's quantized linears."""
        bias = getattr(self.down, "bias", None)
        return bias() if callable(bias) else bias

    def project(self, x: Tensor, loop: int = 0) -> list[Tensor]:
        """W_proj x, [..., D] -> gate (if any) and up, each [..., F]."""
        projected = [self._apply(i, linear, x, loop) for i, linear in enumerate(self.proj)]
        if self.gated and len(projected) == 1:
            return list(projected[0].chunk(2, dim=-1))
        return projected

    def phi(self, projected: Sequence[Tensor]) -> Tensor:
        """a from its projections, [..., F]."""
        first, *second = projected
        return self.act(first) * second[0] if second else self.act(first)

    def hidden(self, state: Tensor, loop: int = 0) -> Tensor:
        """a = φ(W_proj norm(H)), [..., D] -> [..., F]."""
        return self.phi(self.project(self.norm(state), loop))

    def update(self, a: Tensor, loop: int = 0) -> Tensor:
        """post(W_out a), [..., F] -> [..., D]."""
        out = self._apply(len(self.proj), self.down, a, loop)
        return out if self.post_norm is None else self.post_norm(out)

    def state(self, start: Tensor, total: Tensor) -> Tensor:
        """H_ℓ = H₀ + r·U_ℓ from the updates so far, [..., D]."""
        return start + (total if self.scale == 1 else self.scale * total)

    def _apply(self, index: int, linear: nn.Module, x: Tensor, loop: int) -> Tensor:
        out: Tensor = linear(x)
        extra = None if self.loop_weights is None else self.loop_weights.residual(loop, index, x)
        return out if extra is None else out + extra
