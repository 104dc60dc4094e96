"""What each layer's own executor gives for edits of its plan, measured while a model reads.

Legend: P measures, B sequences, T tokens of each.
"""

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from torch import Tensor

from versatileffn.errors import ConfigError
from versatileffn.evaluation.observe import observe
from versatileffn.execution.select import Execution
from versatileffn.ffn.plan import ReusePlan
from versatileffn.ffn.view import FFNView
from versatileffn.layer import Reuse

Measure = Callable[[Tensor, FFNView, Any, Execution], Tensor | None]
"""Of hidden states, the FFN, what was decided, and how it is carried out: [P, B, T], or None where
the layer has nothing to measure."""


@dataclass
class Measured:
    """What was found.

    Args:
        means: of each measured layer, 0-based, mean over tokens, [P].
        shown: of each, the first row of the longest batch, [P, T].
        longest: that row's token ids.
    """

    means: dict[int, np.ndarray] = field(default_factory=dict)
    shown: dict[int, np.ndarray] = field(default_factory=dict)
    longest: list[int] = field(default_factory=list)


def measure_layers(
    model: Any, batches: Iterable[Tensor], measure: Measure, without: Callable[[Any], str]
) -> Measured:
    """Let a model read some text and measure its layers at each token.

    Args:
        model: a causal language model of any family.
        batches: token ids without padding, each [B, T].
        measure: what to measure of a layer.
        without: says, of the decisions of all layers, why none could be measured.

    Raises:
        ConfigError: there are no tokens, or no layer can be measured.
        CheckpointError: the model computes no finite numbers.
    """
    result, tokens = Measured(), 0
    found: dict[int, Tensor] = {}
    with _watching(model, measure, found):
        for seen in observe(model, batches):
            if not found:
                raise ConfigError(without(seen.decisions))
            tokens += seen.ids_BT.numel()
            for layer, measures_PBT in found.items():
                total = measures_PBT.sum((1, 2)).cpu().numpy()
                result.means[layer] = result.means.get(layer, 0.0) + total
            if seen.ids_BT.shape[1] > len(result.longest):
                result.longest = seen.ids_BT[0].tolist()
                result.shown = {layer: each[:, 0].cpu().numpy() for layer, each in found.items()}
            found.clear()
    result.means = {layer: total / tokens for layer, total in result.means.items()}
    return result


@contextmanager
def _watching(model: Any, measure: Measure, found: dict[int, Tensor]) -> Iterator[None]:
    """While it lasts, each layer that can be measured leaves its measures in `found`."""
    layers = [layer for layer in model.modules() if isinstance(layer, Reuse)]

    def watch(index: int, layer: Any) -> None:
        own = layer.reuse

        def reuse(hidden: Tensor, view: FFNView, plan: ReusePlan | None = None) -> Any:
            update, decided = own(hidden, view, plan)
            measures = measure(hidden, view, decided, layer.execution)
            if measures is not None:
                found[index] = measures
            return update, decided

        layer.reuse = reuse

    for index, layer in enumerate(layers):
        watch(index, layer)
    try:
        yield
    finally:
        for layer in layers:
            del layer.reuse
