"""Decoding: a few tokens through many layers, whose weights don't fit into any cache together.

Legend: M tokens (the batch), D d_model, F d_hidden.
"""

import copy
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor

from versatileffn.bench.distributions import SHARES
from versatileffn.bench.layers import TOLERANCE, Setup, check_equal, set_up
from versatileffn.bench.timing import Budget, measure, waits_for
from versatileffn.ffn.plan import ReusePlan

LOOPS = {
    "1 loop": (1.0, 0.0, 0.0, 0.0),
    "4 loops": (0.0, 0.0, 0.0, 1.0),
    "mixed": SHARES["2.5"],
}
"""Shares of tokens with 1 … 4 loops; one token alone can't be mixed."""


@dataclass(frozen=True)
class Stack:
    """Copies of a layer, each with weights of its own.

    Args:
        setups: one for each copy; hidden states of the first are the input.
        plan: the same for all.
    """

    setups: list[Setup]
    plan: ReusePlan

    def run(self, executor: str) -> Tensor:
        """All layers one after another, [M, D]."""
        hidden_MD = self.setups[0].hidden_MD
        for setup in self.setups:
            hidden_MD = replace(setup, hidden_MD=hidden_MD).run(executor, self.plan)
        return hidden_MD


@torch.inference_mode()
def decode(
    budget: Budget, device: str, weight_bytes: int, tokens: int, **settings: Any
) -> dict[str, Any]:
    """One token for each sequence through layers of `weight_bytes` in all, by loops.

    The batch's loops are all 1, all 4, or mixed; `auto` carries them out.
    """
    first = set_up(tokens=tokens, device=device, shares=LOOPS["1 loop"], **settings)
    # Small updates keep the states of dozens of layers of random weights finite.
    first.layer.mlp.down_proj.weight.mul_(0.1)
    layer_bytes = sum(p.numel() * p.element_size() for p in first.layer.mlp.parameters())
    layers = max(2, -(-weight_bytes // layer_bytes))
    setups = [replace(first, layer=copy.deepcopy(first.layer)) for _ in range(layers)]

    run: dict[str, Callable[[], Tensor]] = {}
    errors: dict[str, float] = {}
    for name, shares in LOOPS.items():
        if name == "mixed" and tokens == 1:
            continue
        plan = set_up(tokens=tokens, device=device, shares=shares, **settings).plan()
        slow = f"straightforward, {name}"
        run[name] = partial(Stack(setups, plan).run, "auto")
        run[slow] = partial(Stack(setups, plan).run, "straightforward")
        # In one layer: through dozens, rounding alone takes two ways apart.
        one = Stack(setups[:1], plan)
        outputs = {name: [one.run("auto")], slow: [one.run("straightforward")]}
        errors |= check_equal(outputs, slow, TOLERANCE[first.dtype])
    run["dense"] = partial(Stack(setups, first.plan()).run, "dense")
    timings = measure(run, budget, waits_for(device))
    ratios = {f"{name}/dense": timings.ratio(name, "dense")._asdict() for name in run}
    ratios["4 loops/1 loop"] = timings.ratio("4 loops", "1 loop")._asdict()
    return {
        "layers": layers,
        "errors": errors,
        "seconds": timings.to_dict(),
        "ratios": ratios,
    }
