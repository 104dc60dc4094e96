"""How loops are spread over tokens: prescribed counts with a given mean, and a trained model's.

Legend: M tokens, L max_loops.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from versatileffn.ffn.controller import LinearController
from versatileffn.ffn.plan import ReusePlan

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
    """ℓ̂ of each token, shuffled, int64 [M]: shares as close as whole counts allow.

    Args:
        shares: share of tokens with 1, 2, … loops; sums to 1.
        tokens: M.
        seed: of the order.
    """
    ends = (torch.tensor([0.0, *shares], dtype=torch.float64).cumsum(0) * tokens).round().long()
    loops = torch.arange(1, len(shares) + 1).repeat_interleave(ends.diff())
    return loops[torch.randperm(tokens, generator=torch.Generator().manual_seed(seed))]


def gumbel_noise_for(logits_ML: Tensor, loop_count_M: Tensor, seed: int = 0) -> Tensor:
    """Noise with which the loop logits have their maximum at given counts, by `MARGIN`, [M, L].

    Args:
        logits_ML: W_loop·H.
        loop_count_M: the wanted ℓ̂.
        seed: of the other loops' scores, uniform in [0, ½].
    """
    generator = torch.Generator().manual_seed(seed)
    scores_ML = torch.rand(logits_ML.shape, generator=generator).to(logits_ML) / 2
    best_M1 = scores_ML.max(-1, keepdim=True).values + MARGIN
    scores_ML = scores_ML.scatter(-1, loop_count_M[..., None] - 1, best_M1)
    return scores_ML - logits_ML.detach()


class PrescribedController(LinearController):
    """A controller's own router, loop predictor and gradients, at loop counts that are prescribed.

    Args:
        inner: the controller whose modules are shared.
        loop_count: ℓ̂ of each token, int64 [M]; another number of tokens takes them in turn.
        seed: of the noise.
    """

    def __init__(self, inner: LinearController, loop_count: Tensor, seed: int = 0) -> None:
        assert inner.router is not None
        assert inner.slices is not None
        super().__init__(inner.router.in_features, inner.slices.d_hidden, inner.config)
        self.router, self.loop_head = inner.router, inner.loop_head
        self.tau, self.seed, self.prescribed = inner.tau, seed, loop_count
        self.scores: dict[torch.Size, Tensor] = {}

    def forward(self, hidden: Tensor, gumbel_noise: Tensor | None = None) -> ReusePlan:
        """The plan, with the leading shape of `hidden`; the noise is chosen here."""
        assert self.loop_head is not None
        shape = hidden.shape[:-1]
        if shape not in self.scores:
            turn = torch.arange(shape.numel()) % len(self.prescribed)
            blank = torch.zeros(*shape, self.config.max_loops)
            scores = gumbel_noise_for(blank, self.prescribed[turn].view(shape), self.seed)
            self.scores[shape] = scores.to(hidden.device)
        with torch.no_grad():
            noise = self.scores[shape] - self.loop_head(hidden).float()
        return super().forward(hidden, gumbel_noise=noise)
