"""W_proj, φ and W_out of our own layers; a Transformers family brings its own.

Legend: D d_model, F d_hidden; leading dimensions are free.
"""

from collections.abc import Callable

import torch.nn.functional as F
from torch import Tensor, nn

from versatileffn.errors import ConfigError
from versatileffn.ffn.values import check_value
from versatileffn.ffn.view import FFNView, LoopWeights, Norm


def gelu_tanh(x: Tensor) -> Tensor:
    """GELU in its tanh approximation."""
    return F.gelu(x, approximate="tanh")


def relu2(x: Tensor) -> Tensor:
    """Squared ReLU."""
    return F.relu(x).square()


ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "silu": F.silu,
    "gelu": F.gelu,
    "gelu_tanh": gelu_tanh,
    "relu": F.relu,
    "relu2": relu2,
}


class MLP(nn.Module):
    """W_proj, φ and W_out, in the layout of Transformers' Llama.

    Args:
        d_model: D.
        d_hidden: F.
        activation: a name from `ACTIVATIONS`.
        gated: φ is act(gate)·up (SwiGLU with `silu`); otherwise act(up).
        bias: give the linear maps biases.

    Raises:
        ConfigError: a value is unknown or out of range.
    """

    def __init__(
        self,
        d_model: int,
        d_hidden: int,
        activation: str = "silu",
        gated: bool = True,
        bias: bool = False,
    ) -> None:
        super().__init__()
        for name, value in (("d_model", d_model), ("d_hidden", d_hidden)):
            check_value(name, value, int)
        for name, value in (("gated", gated), ("bias", bias)):
            check_value(name, value, bool)
        if not isinstance(activation, str) or activation not in ACTIVATIONS:
            raise ConfigError(
                f"activation={activation!r} is unknown: choose one of {list(ACTIVATIONS)}"
            )
        self.gate_proj = nn.Linear(d_model, d_hidden, bias=bias) if gated else None
        self.up_proj = nn.Linear(d_model, d_hidden, bias=bias)
        self.down_proj = nn.Linear(d_hidden, d_model, bias=bias)
        self.act_fn = ACTIVATIONS[activation]

    def view(self, norm: Norm, loop_weights: LoopWeights | None = None) -> FFNView:
        """What executors see of it behind a norm."""
        gate = self.gate_proj
        proj = (self.up_proj,) if gate is None else (gate, self.up_proj)
        return FFNView(
            norm, proj, self.act_fn, self.down_proj, gate is not None, loop_weights=loop_weights
        )

    def forward(self, x: Tensor) -> Tensor:
        """W_out φ(W_proj x), [..., D] -> [..., D]."""
        gate, up = self.gate_proj, self.up_proj(x)
        return self.down_proj(self.act_fn(up) if gate is None else self.act_fn(gate(x)) * up)
