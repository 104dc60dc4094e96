"""A controller that is told the depth: the ceiling of what a learned one can reach."""

import torch
from torch import Tensor, nn

from versatileffn.errors import ConfigError
from versatileffn.ffn.config import Versatile
from versatileffn.ffn.controller import LinearController
from versatileffn.ffn.plan import ReusePlan
from versatileffn.ffn.registry import register_controller
from versatileffn.reproduce.depth.task import TASK

PRESCRIBED = "prescribed-depth"


@register_controller(PRESCRIBED)
class PrescribedDepth(nn.Module):
    """As many loops as the question asks for steps, at least one; experts as in the paper.

    A window's first token says k.

    Args:
        d_model, d_hidden, config: as for the paper's controller, whose router it has.

    Attributes:
        inner: the paper's controller, of whose plan everything but the depth is kept.
        loops: of each token of the coming forward pass, [B, T].
    """

    def __init__(self, d_model: int, d_hidden: int, config: Versatile) -> None:
        super().__init__()
        self.inner = LinearController(d_model, d_hidden, config)
        self.loops: Tensor | None = None

    def see(self, input_ids: Tensor | None) -> None:
        """Read k from the first token of each window, [B, T]."""
        if input_ids is None:
            raise ConfigError(f"{PRESCRIBED} needs input_ids: it reads k from the tokens")
        most = self.inner.config.max_loops
        wanted = (input_ids[:, :1] - TASK.states).clamp(1, most).expand_as(input_ids)
        self.loops = torch.cat([torch.ones_like(wanted[:, :1]), wanted[:, 1:]], dim=1)

    def forward(self, hidden: Tensor) -> ReusePlan:
        """The paper's plan with the depth that is asked for, for hidden states [B, T, D]."""
        assert self.loops is not None
        plan: ReusePlan = self.inner(hidden)
        return plan.with_loops(self.loops)

    def reset_parameters(self, std: float = 0.02) -> None:
        """Draw the router."""
        self.inner.reset_parameters(std)
