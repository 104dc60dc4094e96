"""VersatileFFN: one feed-forward network, reused in width and depth, mixed by difficulty."""

import torch
from torch import Tensor, nn

from versatileffn.errors import ConfigError
from versatileffn.execution.select import execute
from versatileffn.ffn.config import FFNConfig
from versatileffn.ffn.controller import ReuseController
from versatileffn.ffn.dense import DenseFFN, FeedForward, FFNOutput, Norm
from versatileffn.ffn.losses import balance_loss
from versatileffn.ffn.plan import ReusePlan


class VersatileFFN(DenseFFN):
    """Y = λ·Y_width + (1 − λ)·Y_depth, norm and residual included. Source: Eq. 3.

    Decide, then execute: the controller turns H into a plan, an executor carries it out. Replace
    `controller` by any module that returns a `ReusePlan` to try another way to decide.

    Args:
        d_model: D, width of the residual stream.
        d_hidden: F, hidden neurons of the FFN.
        config: the reuse; None takes the paper's (N = 8, K = 2, f = F/8, L = 4).
        activation, gated, bias, norm_eps: see `DenseFFN`.
        reuse: fields of `FFNConfig`, instead of or on top of `config`.

    Attributes:
        norm: the RMSNorm before the FFN.
        mlp: `gate_proj` (None when not gated), `up_proj`, `down_proj`.
        controller: `router` and `loop_head`.

    Raises:
        ConfigError: a value is out of range, or the experts don't fit into the FFN.
    """

    def __init__(
        self,
        d_model: int,
        d_hidden: int,
        config: FFNConfig | None = None,
        *,
        activation: str = "silu",
        gated: bool = True,
        bias: bool = False,
        norm_eps: float = 1e-6,
        **reuse: object,
    ) -> None:
        super().__init__(
            d_model, d_hidden, activation=activation, gated=gated, bias=bias, norm_eps=norm_eps
        )
        if config is not None and not isinstance(config, FFNConfig):
            raise ConfigError(f"config={config!r} must be an FFNConfig, or leave it out")
        try:
            self.config = (config or FFNConfig()).replace(**reuse)
        except TypeError as error:
            raise ConfigError(
                f"{error}: the reuse is described by the fields of FFNConfig"
            ) from None
        if self.config.variant != "versatile":
            raise ConfigError(
                f"VersatileFFN got variant={self.config.variant!r}: use DenseFFN, KLoopFFN or "
                "MoEFFN for the baselines"
            )
        self.config.warn_unused_neurons(d_hidden)
        self.controller = ReuseController(d_model, d_hidden, self.config)
        self.controller.reset_parameters()

    def forward(self, hidden: Tensor, plan: ReusePlan | None = None) -> FFNOutput:
        """Apply the layer.

        Args:
            hidden: H, hidden states after attention, [..., D].
            plan: what to do for each token; None lets the controller decide.

        Returns:
            new hidden states [..., D], the balance loss (None without a router), and the plan.

        Raises:
            PlanError: the given plan is for other tokens or another layer, or contradicts itself.
        """
        if plan is not None:
            plan.check(self.mlp.up_proj.out_features)
            if isinstance(self.controller, ReuseController):
                self.controller.check_fit(plan)
        new_hidden, plan = versatile(
            hidden, self.norm, self.mlp, self.controller, self.config, plan
        )
        if plan.router_logits is None:
            return FFNOutput(new_hidden, None, plan)
        return FFNOutput(new_hidden, balance_loss(plan.router_logits, self.config.top_k), plan)


def versatile(
    hidden: Tensor,
    norm: Norm,
    mlp: FeedForward,
    controller: nn.Module,
    config: FFNConfig,
    plan: ReusePlan | None = None,
) -> tuple[Tensor, ReusePlan]:
    """Decide and execute with someone else's norm and FFN, as a Transformers layer does.

    Returns:
        new hidden states, [..., D], and the plan that was carried out.
    """
    if plan is None:
        plan = controller(norm(hidden) if config.normed_controller else hidden)
        if not isinstance(controller, ReuseController) and not torch.compiler.is_compiling():
            plan.check(getattr(mlp.up_proj, "out_features", None))
    return execute(hidden, norm, mlp, plan, config.execution), plan
