"""Turn a reuse model whose reuse adds nothing back into the dense model it came from."""

from copy import deepcopy
from typing import Any

from versatileffn.errors import ConfigError
from versatileffn.ffn.config import Versatile
from versatileffn.ffn.controller import ConstantController, LinearController
from versatileffn.ffn.one_loop import share_of_one_loop
from versatileffn.layer import NEW_TENSORS
from versatileffn.models.checkpoint import load_checkpoint
from versatileffn.models.config import dense_config
from versatileffn.models.layer import ReuseLayer
from versatileffn.models.pretrained import BUDGET, ReusePreTrainedModel


def to_dense(model: Any) -> Any:
    """The dense model of Transformers' own class that computes exactly what a reuse model does.

    There is one where every learned gain is 0, whatever the controllers decide (docs/algebra.md),
    or where no token loops and nothing is added to the one FFN.

    Args:
        model: of a supported family, with any head, adapters merged.

    Returns:
        the dense model, in the same dtype, on the same device, in evaluation mode. It shares the
        weights with `model`: nothing is copied.

    Raises:
        ConfigError: it is no reuse model, is quantized, or its reuse adds something, with what.
        CheckpointError: it holds weights that are neither the dense model's nor its reuse's.
    """
    if not isinstance(model, ReusePreTrainedModel):
        raise ConfigError(
            f"a {type(model).__name__} is no model whose FFN is reused: give what "
            "versatileffn.upcycle made; of adapters, what merge_and_unload() returns"
        )
    if getattr(model.config, "quantization_config", None) is not None:
        raise ConfigError("the model is quantized: convert the unquantized one, then quantize that")
    added = [
        f"layer {index}: {reason}"
        for index, layer in enumerate(model.reuse_layers())
        if (reason := _what_is_added(layer)) is not None
    ]
    if added:
        more = f" (and {len(added) - 1} more layers)" if len(added) > 1 else ""
        raise ConfigError(
            f"no dense model computes what this one does: {added[0]}{more}; only where all learned "
            "gains are exactly 0 there is one"
        )
    dense: Any = next(c for c in type(model).__mro__ if c.__module__.startswith("transformers."))
    ours, theirs = f"{model.base_model_prefix}.", f"{dense.base_model_prefix}."
    weights = {
        theirs + name.removeprefix(ours) if name.startswith(ours) else name: tensor
        for name, tensor in model.state_dict().items()
        if not any(f".{new}" in name for new in NEW_TENSORS)
    }
    made = load_checkpoint(
        dense, "the model", dense_config(model.config), dtype=model.dtype, weights=weights
    )
    if model.can_generate():
        made.generation_config = deepcopy(model.generation_config)
        for name in BUDGET:
            vars(made.generation_config).pop(name, None)
    return made.to(model.device)


def _what_is_added(layer: ReuseLayer) -> str | None:
    """What a layer's reuse adds to the dense FFN; None if nothing.

    Loops after the first, and the experts, only ever act through their gains. Where these are
    fixed there must be one loop, and no share for the width pathway.
    """
    outlets, ffn = layer.outlets(), layer.reuse_config
    if outlets:
        return next((f"{name} isn't 0" for name, weight in outlets.items() if weight.any()), None)
    if type(layer.controller) not in (LinearController, ConstantController):
        return f"its gains are fixed, and a {type(layer.controller).__name__} decides"
    if layer.loops > 1:
        return f"it loops {layer.loops} times with fixed gains"
    if isinstance(ffn, Versatile) and ffn.uses_width and share_of_one_loop(ffn.fusion, 1):
        return f"its experts have a fixed share (fusion={ffn.fusion!r})"
    scale = getattr(ffn, "loop_scale", 1.0)
    return None if scale == 1 else f"loop_scale={scale:g} scales its FFN"
