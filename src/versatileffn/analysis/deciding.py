"""Which layers decide something, and why none does."""

from collections.abc import Sequence
from typing import Any

from versatileffn.errors import ConfigError
from versatileffn.ffn.moe import Routing
from versatileffn.ffn.plan import ReusePlan


def deciding_layers(model: Any, decisions: Sequence[ReusePlan | Routing]) -> dict[int, ReusePlan]:
    """The plans of the layers that decide how often a token loops, by 0-based layer.

    Raises:
        ConfigError: none does; says why.
    """
    plans = {
        layer: decision
        for layer, decision in enumerate(decisions)
        if isinstance(decision, ReusePlan) and decision.uniform is None
    }
    if plans:
        return plans
    name = model.name_or_path or "the model"
    if any(isinstance(decision, Routing) for decision in decisions):
        reason = "its experts are real and no token loops; `versatileffn analyze words` shows them"
    else:
        constant = {d.uniform for d in decisions if isinstance(d, ReusePlan)} or {1}
        most = max(loops or 1 for loops in constant)
        reason = "it is dense"
        if most > 1:
            reason = f"every token takes {most} loops by design; `analyze similarity` compares them"
    raise ConfigError(
        f"{name} decides no loops ({reason}), so there is nothing to see: give a versatile model, "
        "see `versatileffn upcycle` and `train`"
    )
