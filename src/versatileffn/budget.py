"""The dial: what a model may spend, of the running model and never saved."""

from collections.abc import Iterator
from contextlib import contextmanager

from torch import Tensor, nn

from versatileffn.errors import ConfigError
from versatileffn.layer import Reuse


def set_compute_budget(model: nn.Module, max_loops: int | Tensor | None = None) -> None:
    """Say how often a token may pass through each layer's FFN from now on.

    Tokens that want fewer loops are left alone, to the bit.

    Args:
        model: a model, or any module with reused layers.
        max_loops: the most loops of every token, or of each sequence in the batch, [B]; None for
            as many as each token wants.

    Raises:
        ConfigError: a number is out of range, or nothing is decided that could be capped.
    """
    layers = [module for module in model.modules() if isinstance(module, Reuse)]
    if not layers:
        raise ConfigError(
            f"a {type(model).__name__} has no reused FFN, so there are no loops to cap: convert it "
            "with versatileffn.upcycle"
        )
    looping = [layer for layer in layers if layer.loops > 1]
    if max_loops is not None and not looping:
        raise ConfigError(
            f"max_loops={max_loops}: a {layers[0].reuse_config.variant} model decides nothing that "
            "could be capped, as every token passes through each FFN once: leave the budget out, "
            "or convert with vf.Versatile or vf.KLoop"
        )
    for layer in looping:
        layer.set_budget(max_loops)


@contextmanager
def compute_budget(model: nn.Module, max_loops: int | Tensor | None = None) -> Iterator[None]:
    """Another budget for a while; see `set_compute_budget`."""
    before = [(module, module.budget) for module in model.modules() if isinstance(module, Reuse)]
    set_compute_budget(model, max_loops)
    try:
        yield
    finally:
        for layer, budget in before:
            layer.budget = budget
