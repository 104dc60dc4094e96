"""Token choice, as in Mixture-of-Recursions: one router picks each token's depth, and its gate
says how much of that depth counts.

Legend: M tokens, D d_model, L max_loops.
"""

import torch
from torch import Tensor, nn

from versatileffn.errors import ConfigError
from versatileffn.ffn.budget import charged
from versatileffn.ffn.config import Versatile
from versatileffn.ffn.open_loops import OpenLoops
from versatileffn.ffn.plan import ReusePlan
from versatileffn.ffn.plan_fields import one_hot_loops
from versatileffn.ffn.registry import register_controller
from versatileffn.ffn.wide import WideLinear, at_least_float32


@register_controller("token-choice")
class TokenChoiceController(OpenLoops, nn.Module):
    """ℓ̂ = argmax softmax(W H) and Y = H + g_ℓ̂ (H_ℓ̂ − H), with a balance loss over depths.

    Source: Mixture-of-Recursions (arXiv 2507.10524), token-choice routing, for one FFN instead of
    a block of layers. With learned gains the rest of the weight, 1 − g, is the dense FFN's, so
    that the start is exact.

    Args:
        d_model: D.
        d_hidden: F, unused: there are no virtual experts.
        config: the layer's settings.

    Attributes:
        loop_head: D -> L.
        open_loops: as `LinearController`'s.
        loop_penalty: as `LinearController`'s.

    Raises:
        ConfigError: the config asks for a width pathway or a soft mix.
    """

    loop_penalty: Tensor | None = None

    def __init__(self, d_model: int, d_hidden: int, config: Versatile) -> None:
        super().__init__()
        if config.fusion != "depth" or config.loop_mix != "hard":
            raise ConfigError(
                f"controller='token-choice' has no use for fusion={config.fusion!r} and "
                f"loop_mix={config.loop_mix!r}: it needs fusion='depth' and loop_mix='hard'"
            )
        self.open_loops = config.max_loops
        self.loop_head = WideLinear(d_model, config.max_loops)
        self.reset_parameters()

    @torch.no_grad()
    def reset_parameters(self, std: float = 0.02) -> None:
        """Draw the linear map from N(0, std²)."""
        nn.init.normal_(self.loop_head.weight, std=std)

    def forward(self, hidden: Tensor) -> ReusePlan:
        """Decide for each token of hidden states [..., D], without noise."""
        logits = self.among_open(at_least_float32(self.loop_head(hidden)))
        logits = charged(logits, self.loop_penalty)
        gate, choice = logits.softmax(-1).max(-1)
        probs = one_hot_loops(choice + 1, logits.shape[-1]).to(logits.dtype)
        return ReusePlan(choice + 1, probs, lam=1 - gate, loop_logits=logits, balance_logits=logits)
