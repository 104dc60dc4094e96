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
        and type(linear.weight) in (Tensor, nn.Parameter)
        and not is_watched(linear)
        for linear in linears(mlp)
    )


def is_watched(module: nn.Module) -> bool:
    """Whether calling a module does more than its class says: hooks, or a replaced `forward`."""
    return "forward" in module.__dict__ or any(
        (
            module._forward_hooks,
            module._forward_pre_hooks,
            module._backward_hooks,
            module._backward_pre_hooks,
        )
    )


def reads_plain_weights(norm: Norm, mlp: FeedForward) -> bool:
    """Whether the weights may be read instead of calling the linears: plain and bias-free."""
    return (
        isinstance(norm, nn.Module)
        and is_plain(mlp)
        and all(linear.bias is None for linear in linears(mlp))
    )
