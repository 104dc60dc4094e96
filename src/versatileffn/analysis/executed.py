"""Matrix-product FLOPs that the FFNs really execute in a forward pass over real tokens.

torch counts every matrix product and attributes it to the module that ran it. The FFN's share of a
decoder layer is everything in the layer but its attention and its controller or router: whatever
an executor multiplies is counted, wherever it does so. Our operators tell torch what they do
(`execution/flops.py`); an operator of someone else's that doesn't is refused, as a 0 would look
like a saving.
"""

import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode, flop_registry

from versatileffn.errors import ConfigError

aten = torch.ops.aten
CONTROLLERS = ("controller", "experts.router")
TORCHS_OWN = ("aten", "prim", "prims", "c10", "c10d", "_c10d_functional", "profiler")
LAYER = re.compile(r"\.layers\.\d+$")
ATTENTION = re.compile(r"\.layers\.\d+\.\w*att\w*$")
"""Modules of a family's decoder layer; norms that are named after attention multiply nothing."""
PRODUCT = re.compile(r"mm|mv|linear|matmul|conv|(^|_)v?dot$|einsum")
"""In the name of an operator that multiplies matrices."""


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
        model: a causal language model, ours or dense, of any family.
        batches: token ids, each [B, T].

    Returns:
        The counts, divided by the number of tokens.

    Raises:
        ConfigError: there are no tokens, or an FFN ran an operator whose FLOPs torch can't know.
    """
    model = getattr(model, "_orig_mod", model)  # torch.compile's wrapper; counting runs eagerly
    was_training = model.training
    model.eval()
    tokens = 0
    counter = FlopCounter()
    unseen = _Unseen(counter)
    try:
        with counter, unseen:
            for input_ids in batches:
                input_ids = input_ids.to(next(model.parameters()).device)
                model(input_ids=input_ids, use_cache=False)
                tokens += input_ids.numel()
    finally:
        model.train(was_training)
    if tokens == 0:
        raise ConfigError("no tokens to count FLOPs on: give at least one window")
    if unseen.operators:
        raise ConfigError(
            f"the FFNs ran {', '.join(sorted(unseen.operators))}, whose FLOPs torch doesn't know: "
            "count the model without it (plain weights, set_execution('auto')), or register its "
            "formula with torch.utils.flop_counter.register_flop_formula"
        )
    total = {name: sum(ops.values()) for name, ops in counter.get_flop_counts().items()}
    return _per_token(total, tokens)


class FlopCounter(FlopCounterMode):
    """torch's counter, with what it hasn't learned yet; 2 FLOPs per multiply-add.

    Our own operators tell it what they do, see `execution/flops.py`.
    """

    def __init__(self) -> None:
        forward = flop_registry[aten._scaled_dot_product_flash_attention]
        backward = flop_registry[aten._scaled_dot_product_flash_attention_backward]
        unknown = {
            aten._grouped_mm: grouped_mm_flops,
            aten._scaled_dot_product_flash_attention_for_cpu: lambda *a, **k: forward(*a),
            aten._scaled_dot_product_flash_attention_for_cpu_backward: lambda *a, **k: backward(*a),
        }
        super().__init__(display=False, custom_mapping=unknown)

    @property
    def total(self) -> int:
        """All FLOPs so far."""
        return int(self.get_total_flops())


class _Unseen(TorchDispatchMode):
    """Names the operators in FFNs that the counter passes over though they may multiply."""

    def __init__(self, counter: FlopCounterMode) -> None:
        super().__init__()
        self.counter = counter
        self.operators: set[str] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run one operator, and look at its name."""
        modules = self.counter.mod_tracker.parents
        if func._overloadpacket not in self.counter.flop_registry and _may_multiply(func):
            within = any(LAYER.search(module) for module in modules)
            if within and not any(ATTENTION.search(module) for module in modules):
                self.operators.add(str(func._overloadpacket))
        return func(*args, **(kwargs or {}))


def _may_multiply(func: Any) -> bool:
    """Whether an operator is someone's own, or of torch's products by its name."""
    if func.namespace not in TORCHS_OWN:
        return True
    return PRODUCT.search(func._overloadpacket.__name__) is not None


def _per_token(total: Mapping[str, int], tokens: int) -> ExecutedFlops:
    by_layer, controllers = [], 0
    for layer in filter(LAYER.search, total):
        controller = sum(_of_module(total, f"{layer}.{name}") for name in CONTROLLERS)
        inside = [name for name in total if name.rpartition(".")[0] == layer]
        attention = sum(total[name] for name in inside if ATTENTION.search(name))
        by_layer.append((total[layer] - attention - controller) / tokens)
        controllers += controller
    return ExecutedFlops(math.fsum(by_layer), controllers / tokens, tuple(by_layer), tokens)


def _of_module(total: Mapping[str, int], name: str) -> int:
    """FLOPs of a module, or of its children where these are called without it."""
    children = (count for each, count in total.items() if each.rpartition(".")[0] == name)
    return total[name] if name in total else sum(children)


def grouped_mm_flops(
    a_shape: torch.Size, b_shape: torch.Size, *_: Any, out_shape: Any = None, **__: Any
) -> int:
    """FLOPs of torch's grouped matrix product, which torch's own counter doesn't know.

    Args:
        a_shape: [S, in], rows of all groups one after another.
        b_shape: [groups, in, out].
    """
    return 2 * a_shape[0] * a_shape[1] * b_shape[-1]
