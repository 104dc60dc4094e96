"""Whether an FFN's weights are what they seem."""

from torch import Tensor, nn

from versatileffn.ffn.dense import FeedForward, Norm, linears


def is_plain(mlp: FeedForward) -> bool:
    """Whether calling each linear is one matrix product with its weight, and nobody watches.

    Adapters, quantized weights, offloading and parametrizations change what calling a linear does;
    hooks may keep what went in or came out.
    """
    return all(
        type(linear) is nn.Linear
        and "forward" not in linear.__dict__
        and type(linear.weight) in (Tensor, nn.Parameter)
        and not linear._forward_hooks
        and not linear._forward_pre_hooks
        and not linear._backward_hooks
        for linear in linears(mlp)
    )


def reads_plain_weights(norm: Norm, mlp: FeedForward) -> bool:
    """Whether the weights may be read instead of calling the linears: plain and bias-free."""
    return (
        isinstance(norm, nn.Module)
        and is_plain(mlp)
        and all(linear.bias is None for linear in linears(mlp))
    )
