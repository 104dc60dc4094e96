"""Matrix-product FLOPs that the FFNs really execute in a forward pass over real tokens.

torch counts every matrix product and attributes it to the module that ran it. The FFN's share of a
decoder layer is everything in the layer but its attention and its controller or router: whatever
an executor multiplies is counted, wherever it does so.
"""

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from versatileffn.errors import ConfigError

CONTROLLERS = ("controller", "experts.router")


@dataclass(frozen=True)
class ExecutedFlops:
    """FLOPs per token, 2 per multiply-add, counted in a real forward pass.

    Args:
        ffn_per_token: of all FFNs, without controllers.
        controller_per_token: of routers and loop predictors.
        ffn_per_token_by_layer: one number per layer.
        tokens: how many tokens the pass had.
    """

    ffn_per_token: float
    controller_per_token: float
    ffn_per_token_by_layer: tuple[float, ...]
    tokens: int


@torch.no_grad()
def executed_ffn_flops(model: nn.Module, batches: Iterable[Tensor]) -> ExecutedFlops:
    """Count the FFNs' matrix products while the model reads token windows, as at inference.

    Source: Algorithm 2 does Σ loops FFN applications; this is what is there to see of it.

    Args:
        model: a causal language model with its layers in `model.model.layers`.
        batches: token ids, each [B, T].

    Returns:
        The counts, divided by the number of tokens.

    Raises:
        ConfigError: there are no tokens.
    """
    was_training = model.training
    model.eval()
    tokens = 0
    custom = {torch.ops.aten._grouped_mm: grouped_mm_flops}
    counter = FlopCounterMode(display=False, custom_mapping=custom)
    try:
        with counter:
            for input_ids in batches:
                input_ids = input_ids.to(next(model.parameters()).device)
                model(input_ids=input_ids, use_cache=False)
                tokens += input_ids.numel()
    finally:
        model.train(was_training)
    if tokens == 0:
        raise ConfigError("no tokens to count FLOPs on: give at least one window")
    total = {name: sum(ops.values()) for name, ops in counter.get_flop_counts().items()}
    return _per_token(total, type(model).__name__, len(model.model.layers), tokens)  # type: ignore[union-attr,arg-type]


def _per_token(total: Mapping[str, int], root: str, num_layers: int, tokens: int) -> ExecutedFlops:
    by_layer, controllers = [], 0
    for index in range(num_layers):
        layer = f"{root}.model.layers.{index}"
        controller = sum(total.get(f"{layer}.{name}", 0) for name in CONTROLLERS)
        attention = total.get(f"{layer}.self_attn", 0)
        by_layer.append((total[layer] - attention - controller) / tokens)
        controllers += controller
    return ExecutedFlops(math.fsum(by_layer), controllers / tokens, tuple(by_layer), tokens)


def grouped_mm_flops(
    a_shape: torch.Size, b_shape: torch.Size, *_: Any, out_shape: Any = None, **__: Any
) -> int:
    """FLOPs of torch's grouped matrix product, which torch's own counter doesn't know.

    Args:
        a_shape: [S, in], rows of all groups one after another.
        b_shape: [groups, in, out].
    """
    return 2 * a_shape[0] * a_shape[1] * b_shape[-1]
