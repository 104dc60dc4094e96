"""How loops are spread over tokens: prescribed counts with a given mean, and a trained model's.

Legend: M tokens, L max_loops.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from versatileffn.ffn.controller import LinearController

SHARES: dict[str, tuple[float, ...]] = {
    "1.2": (0.85, 0.11, 0.03, 0.01),
    "1.4": (0.75, 0.15, 0.05, 0.05),
    "2.5": (0.25, 0.25, 0.25, 0.25),
    "3.1": (0.10, 0.15, 0.30, 0.45),
    "4.0": (0.0, 0.0, 0.0, 1.0),
    "trained": (0.13083902994791666, 0.4642333984375, 0.3786824544270833, 0.0262451171875),
}
"""Share of tokens with ℓ̂ = 1 … 4, by their mean E[ℓ̂]; `trained` is the mean over layers and seeds
of `versatileffn reproduce --scale tiny --seeds 3` as of November 2026."""
MARGIN = 0.1
"""By how much the wanted loop's noisy logit leads: small, so that p is far from saturated."""


def loop_counts(shares: Sequence[float], tokens: int, seed: int = 0) -> Tensor:
    """ℓ̂ of each token, shuffled, int64 [M]: as close as can be to the shares of 1, 2, … loops."""
    ends = (torch.tensor([0.0, *shares], dtype=torch.float64).cumsum(0) * tokens).round().long()
    loops = torch.arange(1, len(shares) + 1).repeat_interleave(ends.diff())
    return loops[torch.randperm(tokens, generator=torch.Generator().manual_seed(seed))]


def prescribe(controller: LinearController, loop_count_M: Tensor, seed: int = 0) -> None:
    """Let a controller decide for given loop counts, by the noise that it is given from now on.

    Its router, loop predictor and gradients stay its own.

    Args:
        controller: whose τ becomes 1.
        loop_count_M: ℓ̂; another number of tokens takes them in turn.
        seed: of the other loops' noisy logits, uniform in [0, ½].
    """
    controller.tau, max_loops = 1.0, controller.config.max_loops
    noisy_logits: dict[torch.Size, Tensor] = {}

    @torch.no_grad()
    def choose(_: object, args: Any, __: object) -> tuple[Any, dict[str, Tensor]]:
        (hidden,) = args
        shape = hidden.shape[:-1]
        if shape not in noisy_logits:
            wanted = loop_count_M[torch.arange(shape.numel()) % len(loop_count_M)]
            generator = torch.Generator().manual_seed(seed)
            others = torch.rand(*shape, max_loops, generator=generator) / 2
            best = others.max(-1, keepdim=True).values + MARGIN
            noisy = others.scatter(-1, wanted.view(*shape, 1) - 1, best)
            noisy_logits[shape] = noisy.to(hidden.device)
        assert controller.loop_head is not None
        return args, {"gumbel_noise": noisy_logits[shape] - controller.loop_head(hidden)}

    controller.register_forward_pre_hook(choose, with_kwargs=True)
