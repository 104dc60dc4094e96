"""The base model's forward pass: what the layers decided is handed out with what they computed."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers.modeling_outputs import MoeModelOutputWithPast
from transformers.utils import can_return_tuple

from versatileffn.errors import ConfigError
from versatileffn.ffn.plan import ReusePlan


class Decisions:
    """Receives what each layer decided, from the layer that carried it out.

    It travels as an argument, and as an object of its own: whatever copies or casts a layer's
    arguments (FSDP, device maps) leaves it alone.
    """

    def __init__(self) -> None:
        self.plans: list[ReusePlan] = []
        self.router_logits: list[Tensor] = []
        self.complete = False

    def add(self, router_logits: Tensor | None, plan: ReusePlan | None = None) -> None:
        """Take one layer's decision.

        Args:
            router_logits: [..., N]; kept as [M, N], as everywhere in Transformers.
            plan: the plan that was carried out.
        """
        if self.complete:  # checkpointing runs a layer again in the backward pass
            return
        if router_logits is not None:
            self.router_logits.append(router_logits.flatten(0, -2))
        if plan is not None:
            self.plans.append(plan)


@dataclass
class ReuseModelOutput(MoeModelOutputWithPast):
    """Transformers' MoE output of a base model, with the plans.

    Args:
        router_logits: one [B·T, N] for each layer, when asked for; None without a router.
        reuse_plans: one plan for each layer, when asked for; None for variants that decide nothing.
    """

    reuse_plans: tuple[ReusePlan, ...] | None = None


class ReuseModelMixin:
    """Forward pass of a family's base model, whose layers are `ReuseLayer`s."""

    config: Any
    training: bool
    named_parameters: Any

    @can_return_tuple
    def forward(
        self,
        *args: Any,
        output_router_logits: bool | None = None,
        output_reuse_plans: bool = False,
        **kwargs: Any,
    ) -> ReuseModelOutput:
        """The family's own, with router logits and plans.

        Args:
            args, kwargs: of the family's forward pass.
            output_router_logits: return router logits; by default when the config says so.
            output_reuse_plans: return each layer's plan.

        Raises:
            ConfigError: the balance loss should train a router but will have no gradient.
        """
        if output_router_logits is None:
            output_router_logits = self.config.output_router_logits
        decisions = Decisions()
        if output_router_logits or output_reuse_plans:
            kwargs["decisions"] = decisions
        outputs = super().forward(*args, return_dict=True, **kwargs)  # type: ignore[misc]
        decisions.complete = True
        logits = None
        if output_router_logits:
            logits = tuple(decisions.router_logits) or None
            self._check_balance_gradient(decisions.router_logits)
        return ReuseModelOutput(
            last_hidden_state=outputs.last_hidden_state,
            past_key_values=outputs.past_key_values,
            hidden_states=outputs.hidden_states,
            attentions=outputs.attentions,
            router_logits=logits,  # type: ignore[arg-type]
            reuse_plans=(tuple(decisions.plans) or None) if output_reuse_plans else None,
        )

    def _check_balance_gradient(self, router_logits: list[Tensor]) -> None:
        """Reentrant checkpointing runs layers without gradients and would lose this one silently.

        Raises:
            ConfigError: routers are trained, but their logits have no gradient.
        """
        if not self.training or not torch.is_grad_enabled() or not self.config.router_aux_loss_coef:
            return
        if not router_logits or router_logits[0].requires_grad:
            return
        if any(p.requires_grad for n, p in self.named_parameters() if ".router." in n):
            raise ConfigError(
                "the balance loss has no gradient under reentrant gradient checkpointing: pass "
                "gradient_checkpointing_kwargs={'use_reentrant': False}, or set "
                "router_aux_loss_coef=0"
            )
