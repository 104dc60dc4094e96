"""What the reuse does, layer by layer: read from a step's own forward passes, changing nothing."""

import zlib
from typing import Any

from torch import Tensor

from versatileffn.evaluation.loops import LayerTally, LayerUse
from versatileffn.models.family import is_reuse
from versatileffn.training.sharding import whole


def _key(layer: int, name: str) -> str:
    """The log's key of something in 0-based `layer`; people count layers from 1."""
    return f"layer_{layer + 1}/{name}"


def use_statistics(layer: int, use: LayerUse) -> dict[str, float]:
    """What the log says of one layer's decisions.

    Args:
        layer: its index, from 0.
        use: averages over the tokens of a step.

    Returns:
        `layer_1/mean_loops` (loops per token), `layer_1/loop_share_1` … (share of tokens),
        `layer_1/lambda` (weight of the width pathway), `layer_1/expert_load_0` … (share of
        assignments), as far as the layer decides them.
    """
    values: dict[str, float] = {}
    if use.mean_loops is not None and use.loop_share is not None and use.mean_lam is not None:
        values = {"mean_loops": use.mean_loops, "lambda": use.mean_lam}
        values |= {f"loop_share_{n}": share for n, share in enumerate(use.loop_share, start=1)}
    values |= {f"expert_load_{n}": load for n, load in enumerate(use.expert_load or ())}
    return {_key(layer, name): value for name, value in values.items()}


def learned_gains(model: Any) -> dict[str, float]:
    """Every reuse gain of `model`: `layer_1/width_gain` and `layer_1/loop_gain_2` (γ₂) onwards.

    Empty for a model with fixed gains.
    """
    values: dict[str, float] = {}
    for layer, reuse in enumerate(model.reuse_layers() if is_reuse(model.config) else ()):
        loops = None if reuse.gains is None else reuse.gains.loop_gains
        width = None if reuse.gains is None else reuse.gains.width_gain
        for loop, gain in enumerate([] if loops is None else whole(loops).tolist(), start=2):
            values[_key(layer, f"loop_gain_{loop}")] = gain
        if width is not None:
            values[_key(layer, "width_gain")] = whole(width).item()
    return values


class Telemetry:
    """Averages a step's statistics over its micro-batches, which are of one size.

    Args:
        model: the unwrapped model, whose config says what there is to read.
    """

    def __init__(self, model: Any) -> None:
        config = getattr(model, "config", None)
        self.reuses = is_reuse(config)
        self.variant: str = config.ffn().variant if self.reuses else "dense"  # type: ignore[union-attr]
        self.forget()

    def forget(self) -> None:
        """Drop what was read since the last call of `take`: the step isn't made."""
        self._fed: int | None = None
        self._tallies: list[LayerTally] = []
        self._values: dict[str, list[float]] = {}

    def request(self) -> dict[str, bool]:
        """What to ask the model's forward pass for, as keyword arguments."""
        return {"output_reuse_plans": True} if self.reuses else {}

    def add(self, outputs: Any, input_ids: Tensor) -> None:
        """Read one micro-batch's outputs, and which tokens it was given."""
        self._fed = zlib.crc32(input_ids.cpu().numpy().tobytes(), self._fed or 0)
        decisions = getattr(outputs, "reuse_plans", None) or ()
        self._tallies = self._tallies or [LayerTally() for _ in decisions]
        for tally, decision in zip(self._tallies, decisions, strict=True):
            tally.add(decision)
        for name in ("aux_loss", "prior_loss"):
            loss = getattr(outputs, name, None)
            if loss is not None:
                self.add_value(name, loss.item())

    def add_value(self, name: str, value: float) -> None:
        """Read one micro-batch's part of the training loss, or what else is averaged."""
        self._values.setdefault(name, []).append(value)

    @property
    def fed(self) -> int | None:
        """CRC-32 of the token ids that this process trained on in the logged step, micro-batch
        after micro-batch, for comparing runs; None: on none, for the step was left out."""
        return self._fed

    def take(self) -> dict[str, float]:
        """Means since the last call, by name; the names are the same in all processes."""
        values = {name: sum(each) / len(each) for name, each in self._values.items()}
        for layer, tally in enumerate(self._tallies):
            values |= use_statistics(layer, tally.use())
        self.forget()
        return values
