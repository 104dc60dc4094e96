"""The dense feed-forward network that everything here reuses.

Legend: D d_model, F d_hidden; leading dimensions are free.
"""

from collections.abc import Callable
from typing import NamedTuple, Protocol

import torch.nn.functional as F
from torch import Tensor, nn

from versatileffn.errors import ConfigError
from versatileffn.ffn.plan import ReusePlan
from versatileffn.ffn.values import check_value


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


Norm = Callable[[Tensor], Tensor]


class FeedForward(Protocol):
    """What an executor calls: `MLP`, or the MLP of a Transformers family.

    A gated one also has `gate_proj`.
    """

    up_proj: nn.Linear
    down_proj: nn.Linear
    act_fn: Callable[[Tensor], Tensor]

    def __call__(self, x: Tensor) -> Tensor:
        """W_out φ(W_proj x), [..., D] -> [..., D]."""
        ...


class FFNOutput(NamedTuple):
    """What every variant returns.

    Args:
        hidden: new hidden states, residual included, [..., D].
        balance_loss: load-balancing loss of this layer, a scalar; None without a router.
        plan: what was decided for each token; None for variants that decide nothing.
    """

    hidden: Tensor
    balance_loss: Tensor | None = None
    plan: ReusePlan | None = None


class MLP(nn.Module):
    """W_proj, φ and W_out, in the layout of Transformers' Llama.

    Args:
        d_model: D.
        d_hidden: F.
        activation: a name from `ACTIVATIONS`.
        gated: φ is act(gate)·up (SwiGLU with `silu`); otherwise act(up).
        bias: give the linear maps biases.

    Raises:
        ConfigError: the activation is unknown, or a switch isn't True or False.
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
        check_value("gated", gated, bool)
        check_value("bias", bias, bool)
        if not isinstance(activation, str) or activation not in ACTIVATIONS:
            raise ConfigError(
                f"activation={activation!r} is unknown: choose one of {list(ACTIVATIONS)}"
            )
        self.gate_proj = nn.Linear(d_model, d_hidden, bias=bias) if gated else None
        self.up_proj = nn.Linear(d_model, d_hidden, bias=bias)
        self.down_proj = nn.Linear(d_hidden, d_model, bias=bias)
        self.act_fn = ACTIVATIONS[activation]

    def forward(self, x: Tensor) -> Tensor:
        """W_out φ(W_proj x), [..., D] -> [..., D]."""
        return self.down_proj(hidden_activations(self, x))


def hidden_activations(mlp: FeedForward, x: Tensor) -> Tensor:
    """a = φ(W_proj x), [..., D] -> [..., F], for this MLP or one of Transformers'.

    The linears are called, never read, so adapters and quantized weights take part.
    """
    return activate(mlp, *[linear(x) for linear in linears(mlp)[:-1]])


def linears(mlp: FeedForward) -> list[nn.Linear]:
    """The linears of an FFN: gate (if any), up, down."""
    gate_proj = getattr(mlp, "gate_proj", None)
    return [*([] if gate_proj is None else [gate_proj]), mlp.up_proj, mlp.down_proj]


def output_bias(mlp: FeedForward) -> Tensor | None:
    """W_out's bias, [D]; None without one. A method in torch's quantized linears."""
    bias = mlp.down_proj.bias
    return bias() if callable(bias) else bias


def activate(mlp: FeedForward, *projected: Tensor) -> Tensor:
    """a = φ from its projections: act(gate)·up, or act(up)."""
    first, *second = projected
    return mlp.act_fn(first) * second[0] if second else mlp.act_fn(first)


class DenseFFN(nn.Module):
    """F(H) = H + W_out φ(W_proj norm(H)). Source: Eq. 2.

    Args:
        d_model: D.
        d_hidden: F.
        activation, gated, bias: see `MLP`.
        norm_eps: epsilon of the RMSNorm.
    """

    def __init__(
        self,
        d_model: int,
        d_hidden: int,
        *,
        activation: str = "silu",
        gated: bool = True,
        bias: bool = False,
        norm_eps: float = 1e-6,
    ) -> None:
        super().__init__()
        check_value("d_model", d_model, int)
        check_value("d_hidden", d_hidden, int)
        if not isinstance(norm_eps, float) or not 0 < norm_eps < 1:
            raise ConfigError(f"norm_eps={norm_eps!r} must lie between 0 and 1")
        self.norm = nn.RMSNorm(d_model, eps=norm_eps)
        self.mlp = MLP(d_model, d_hidden, activation, gated, bias)

    def forward(self, hidden: Tensor) -> FFNOutput:
        """[..., D] -> [..., D]."""
        return FFNOutput(hidden + self.mlp(self.norm(hidden)))
