"""VersatileFFN: decide, then execute. Source: Eq. 3."""

import math
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from versatileffn.errors import ConfigError, PlanError
from versatileffn.execution.plain import is_watched
from versatileffn.execution.select import Execution, execute, execute_once, may_run_once
from versatileffn.ffn.base_config import FFNConfig
from versatileffn.ffn.budget import Budget
from versatileffn.ffn.config import MoE, Versatile
from versatileffn.ffn.controller import ConstantController, LinearController
from versatileffn.ffn.gains import LearnedGains, with_scale
from versatileffn.ffn.loop_weights import LowRankLoops
from versatileffn.ffn.mlp import MLP
from versatileffn.ffn.moe import Routing, SparseExperts
from versatileffn.ffn.plan import ReusePlan
from versatileffn.ffn.registry import make_controller
from versatileffn.ffn.router_bias import RouterBias
from versatileffn.ffn.token_choice import TokenChoiceController
from versatileffn.ffn.values import check_value
from versatileffn.ffn.view import FFNView

NEW_TENSORS = ("controller.", "gains.", "loop_weights.", "experts.")
"""What the names of all tensors begin with that a variant adds to its layer."""
OWN_CONTROLLERS = (LinearController, ConstantController, TokenChoiceController)
"""Controllers whose plans are right without a look at them."""


class FFNOutput(NamedTuple):
    """What a layer returns.

    Args:
        hidden: new hidden states, residual included, [..., D].
        balance_loss: load-balancing loss of this layer, a scalar; None where nothing is chosen.
        plan: what was decided for each token; how they were routed where experts are real.
    """

    hidden: Tensor
    balance_loss: Tensor | None
    plan: ReusePlan | Routing


class Reuse(nn.Module):
    """Mixin for a layer whose dense FFN is used in the way of a variant.

    The FFN's modules stay where a dense checkpoint has them; what the variant adds stands beside.

    Attributes:
        reuse_config: the variant.
        controller: decides; None for real experts.
        gains: γ and s; None where they are fixed.
        loop_weights: what each loop adds to the weights; None where loops share them.
        experts: real experts; None without.
        execution: how plans are carried out, see `execution/select.py`; may be set at any time.
        budget: the most loops of each token, see `budget.py`; None for as many as it wants.
        opened: loops whose gains have their full effect; of the next, as much as the fraction says.
            Training may move it while loops are opened, it is never saved.
    """

    execution: Execution = "auto"
    budget: Budget | None = None
    opened: float = math.inf

    def add_reuse(self, config: FFNConfig, d_model: int, d_hidden: int, view: FFNView) -> None:
        """Create what the variant needs beside the dense FFN.

        Args:
            config: the variant.
            d_model, d_hidden: D and F.
            view: the dense FFN.

        Raises:
            ConfigError: the variant doesn't fit the FFN, or its controller is unknown.
        """
        d_expert = config.expert_size(d_hidden)
        self.reuse_config, self.reuse_d_hidden = config, d_hidden
        self.controller: Any = None
        self.experts: SparseExperts | None = None
        self.gains: LearnedGains | None = None
        self.loop_weights: LowRankLoops | None = None
        if isinstance(config, MoE):
            self.experts = SparseExperts(
                d_model, config.num_experts, d_expert, config.top_k, view.act, view.gated,
                silent=config.reuse_gains == "learned", router_bias=RouterBias.of(config),
            )  # fmt: skip
            return
        if isinstance(config, Versatile):
            self.controller = make_controller(d_model, d_hidden, config)
        else:
            self.controller = ConstantController(config.loops)
        if getattr(config, "reuse_gains", "fixed") == "learned":
            start: float = getattr(config, "gain_init", 0.0)
            self.gains = LearnedGains(config.loops, config.has_router, start)
        rank = getattr(config, "loop_rank", None)
        if rank is not None and config.loops > 1:
            fused = 2 if view.gated and len(view.proj) == 1 else 1
            sizes = [*((d_model, fused * d_hidden) for _ in view.proj), (d_hidden, d_model)]
            self.loop_weights = LowRankLoops(sizes, config.loops, rank)

    @property
    def loops(self) -> int:
        """L, the most often that a token passes through the FFN."""
        return self.reuse_config.loops

    def set_budget(self, max_loops: int | Tensor | None) -> None:
        """Let no token loop more often than this from now on; None for no limit.

        Args:
            max_loops: for every token, or for each sequence, [B].

        Raises:
            ConfigError: it is none of 1 … L.
        """
        if max_loops is None:
            self.budget = None
            return
        device = next(self.parameters()).device
        budget = Budget.of(max_loops, self.loops)
        self.budget = Budget(budget.loops.to(device), budget.most)

    def deciders(self, name: str) -> list[Any]:
        """The controller if it has an attribute of that name; it may wrap others, which count."""
        modules = () if self.controller is None else self.controller.modules()
        return [module for module in modules if hasattr(module, name)]

    def decide(self, hidden: Tensor, view: FFNView) -> ReusePlan:
        """What to do for each token of hidden states [..., D], gains and budget included.

        Raises:
            PlanError: someone else's controller made a plan that contradicts itself, or the budget
                is for another batch.
        """
        normed = isinstance(self.reuse_config, Versatile) and self.reuse_config.normed_controller
        plan: ReusePlan = self.controller(view.norm(hidden) if normed else hidden)
        if not isinstance(self.controller, OWN_CONTROLLERS) and not torch.compiler.is_compiling():
            plan.check(self.reuse_d_hidden)
        plan = plan if self.gains is None else self.gains(plan)
        scale: float = getattr(self.reuse_config, "loop_scale", 1.0)
        plan = plan if scale == 1 else with_scale(plan, scale)
        plan = plan if self.opened >= self.loops else plan.ramped(self.opened)
        return plan if self.budget is None else plan.capped(self.budget)

    def update(self, hidden: Tensor, view: FFNView) -> Tensor:
        """Decide and execute, for somebody who doesn't want to know what was decided.

        Returns:
            as `reuse`'s first.
        """
        if not may_run_once(view, self.execution) or not self._loops_once():
            return self.reuse(hidden, view)[0]
        x, gains = view.norm(hidden), self.gains
        return execute_once(
            x, view, self.controller,
            x if getattr(self.reuse_config, "normed_controller", False) else hidden,
            gains is not None, None if gains is None else gains.width_gain, self.execution,
        )  # fmt: skip

    def _loops_once(self) -> bool:
        """Whether it is known, before the controller is asked, that no token loops twice."""
        budget, controller = self.budget, self.controller
        capped = budget is not None and budget.most == 1 and not budget.loops.dim()
        if not capped and self.loops > 1:
            return False
        if self.training:  # noise is drawn, and drawn again when a layer is recomputed
            return False
        if getattr(self.reuse_config, "loop_scale", 1.0) != 1:  # γ₁ is taken for 1 there
            return False
        if type(controller) not in (LinearController, ConstantController):
            return False
        parts = filter(None, controller._modules.values())  # `children` would look for doubles
        return not is_watched(controller) and not any(map(is_watched, parts))

    def reuse(
        self, hidden: Tensor, view: FFNView, plan: ReusePlan | None = None
    ) -> tuple[Tensor, ReusePlan | Routing]:
        """Decide and execute.

        Args:
            hidden: H, hidden states after attention, [..., D].
            view: the dense FFN.
            plan: what to do instead of what the controller decides.

        Returns:
            what the family adds to the residual stream, (Y − H)/r, [..., D], and the decision.
        """
        if self.experts is not None:
            return self.experts.beside(hidden, view)
        plan = self.decide(hidden, view) if plan is None else plan
        return execute(hidden, view, plan, self.execution), plan


class VersatileFFN(Reuse):
    """One FFN with its norm and residual, reused as its config says.

    Replace `controller` by any module that returns a `ReusePlan` to try another way to decide, or
    register it and name it in the config.

    Args:
        d_model: D, width of the residual stream.
        d_hidden: F, hidden neurons of the FFN.
        config: the variant; None takes the paper's (N = 8, K = 2, f = F/8, L = 4).
        activation, gated, bias: see `MLP`.
        norm_eps: epsilon of the RMSNorm.
        knobs: of the variant, instead of or on top of `config`.

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
        **knobs: Any,
    ) -> None:
        super().__init__()
        if config is not None and not isinstance(config, FFNConfig):
            raise ConfigError(f"config={config!r} must be a Versatile, KLoop, MoE or Dense")
        self.config = (config or Versatile()).replace(**knobs)
        if getattr(self.config, "reuse_layers", None) is not None:
            raise ConfigError("reuse_layers is for models: a single layer has no number; drop it")
        check_value("d_model", d_model, int)
        if not isinstance(norm_eps, float) or not 0 < norm_eps < 1:
            raise ConfigError(f"norm_eps={norm_eps!r} must lie between 0 and 1")
        self.mlp = MLP(d_model, d_hidden, activation, gated, bias)
        self.norm = nn.RMSNorm(d_model, eps=norm_eps)
        self.config.warn_unused_neurons(d_hidden)
        self.add_reuse(self.config, d_model, d_hidden, self.mlp.view(self.norm))

    def forward(self, hidden: Tensor, plan: ReusePlan | None = None) -> FFNOutput:
        """Apply the layer.

        Args:
            hidden: H, hidden states after attention, [..., D].
            plan: what to do for each token; None lets the controller decide.

        Returns:
            new hidden states [..., D], the balance loss, and the decision.

        Raises:
            PlanError: the given plan is for other tokens or another layer, or contradicts itself.
        """
        if plan is not None:
            self._check_plan(plan)
        view = self.mlp.view(self.norm, self.loop_weights)
        update, decided = self.reuse(hidden, view, plan)
        return FFNOutput(hidden + update, decided.balance_loss(), decided)

    def _check_plan(self, plan: ReusePlan) -> None:
        """Refuse a plan that contradicts itself, or that a layer of other sizes made.

        Raises:
            PlanError: with the remedy.
        """
        plan.check(self.mlp.up_proj.out_features)
        if self.experts is not None:
            raise PlanError("real experts take no plan: leave it out")
        if plan.max_loops != self.config.loops:
            raise PlanError(
                f"plan for max_loops={plan.max_loops} given to a layer with "
                f"max_loops={self.config.loops}: make it with this layer's controller"
            )
        slices = getattr(self.controller, "slices", plan.slices)  # a foreign one may have none
        if plan.slices is not None and plan.slices != slices:
            raise PlanError(
                f"plan for {plan.slices} given to a layer with {slices}: "
                "make it with this layer's controller"
            )
