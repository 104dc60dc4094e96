"""Whether an FFN is what it seems, so that its weights may be read, not its modules called."""

from torch import Tensor, nn

from versatileffn.ffn.imagined import is_imagined
from versatileffn.ffn.view import FFNView, unchanged


def why_called(view: FFNView) -> str | None:
    """Why hand-written gradients may not read an FFN's weights; None if they may."""
    if not has_plain_linears(view):
        return (
            "a linear map isn't a plain nn.Linear without hooks (adapters, quantization, "
            "offloading and parametrizations aren't)"
        )
    for part in (view.norm, view.post_norm, view.loop_weights):
        if not (part is None or part is unchanged or isinstance(part, nn.Module)):
            return "a norm isn't a module"
    return "φ works in place" if getattr(view.act, "inplace", False) else None


def why_stepwise(view: FFNView) -> str | None:
    """Why each loop is differentiated by autograd; None where it is by hand."""
    if not view.merges:
        return "each loop has a down-projection of its own"
    learned = isinstance(view.act, nn.Module) and len(list(view.act.parameters())) > 0
    return "φ has weights of its own" if learned else None


def has_plain_linears(view: FFNView) -> bool:
    """Whether calling each linear is one matrix product with its weight, and nobody watches.

    Adapters, quantized weights, offloading and parametrizations change what calling a linear does;
    hooks may keep what went in or came out.
    """
    return all(
        type(linear) is nn.Linear
        and (type(linear.weight) in (Tensor, nn.Parameter) or is_imagined(linear.weight))
        and not is_watched(linear)
        for linear in view.linears
    )


def is_watched(module: nn.Module) -> bool:
    """Whether calling a module does more than its class says: hooks, or a replaced `forward`."""
    return "forward" in module.__dict__ or bool(
        module._forward_hooks
        or module._forward_pre_hooks
        or module._backward_hooks
        or module._backward_pre_hooks
    )
