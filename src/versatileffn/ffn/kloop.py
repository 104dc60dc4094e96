"""The k-loop baseline: the whole FFN, k times, for every token."""

from torch import Tensor

from versatileffn.ffn.config import ReuseGains
from versatileffn.ffn.dense import DenseFFN, FeedForward, FFNOutput, Norm
from versatileffn.ffn.gains import LoopGains
from versatileffn.ffn.values import check_value


def k_loop(
    hidden: Tensor, norm: Norm, mlp: FeedForward, num_loops: int, gains: Tensor | None = None
) -> Tensor:
    """Apply F `num_loops` times: H⁽ˡ⁾ = H⁽ˡ⁻¹⁾ + γ_ℓ W_out φ(W_proj norm(H⁽ˡ⁻¹⁾)).

    Source: Eq. 9 with ℓ̂ = k for every token.

    Args:
        hidden: [..., D].
        gains: γ, [k]; None means 1.
    """
    for loop in range(num_loops):
        update = mlp(norm(hidden))
        hidden = hidden + (update if gains is None else gains[loop].to(update.dtype) * update)
    return hidden


class KLoopFFN(DenseFFN):
    """A dense FFN applied k times to every token. Source: the paper's k-Loop baseline.

    Args:
        d_model, d_hidden: D and F.
        num_loops: k.
        reuse_gains: `learned` starts exactly at the dense FFN.
        dense: further arguments of `DenseFFN`.

    Raises:
        ConfigError: a value is unknown or out of range.
    """

    def __init__(
        self,
        d_model: int,
        d_hidden: int,
        num_loops: int,
        *,
        reuse_gains: ReuseGains = "fixed",
        **dense: object,
    ) -> None:
        check_value("num_loops", num_loops, int)
        check_value("reuse_gains", reuse_gains, ReuseGains)
        super().__init__(d_model, d_hidden, **dense)  # type: ignore[arg-type]
        self.num_loops = num_loops
        learned = reuse_gains == "learned" and num_loops > 1
        self.gains = LoopGains(num_loops) if learned else None

    def forward(self, hidden: Tensor) -> FFNOutput:
        """[..., D] -> [..., D]."""
        gains = None if self.gains is None else self.gains()
        return FFNOutput(k_loop(hidden, self.norm, self.mlp, self.num_loops, gains))
