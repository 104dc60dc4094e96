"""A family's base model: what the layers decided is handed out with what they computed."""

import warnings
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers.modeling_outputs import BaseModelOutputWithPast
from transformers.utils import can_return_tuple

from versatileffn.ffn.moe import Routing
from versatileffn.ffn.plan import ReusePlan
from versatileffn.layer import OWN_CONTROLLERS
from versatileffn.models.decisions import Decisions
from versatileffn.models.pretrained import ReusePreTrainedModel


@dataclass
class ReuseModelOutput(BaseModelOutputWithPast):
    """Transformers' output of a base model, with what its layers decided.

    Args:
        router_logits: one [B·T, N] for each layer, when asked for; None without a router.
        reuse_plans: what each layer decided, when asked for.
    """

    router_logits: tuple[Tensor, ...] | None = None
    reuse_plans: tuple[ReusePlan | Routing, ...] | None = None


class ReuseBaseModel(ReusePreTrainedModel):
    """Mixin for a family's base model, whose layers are `ReuseLayer`s."""

    _looked_for_dead = False

    def __init__(self, config: Any, *args: Any, **kwargs: Any) -> None:
        super().__init__(config, *args, **kwargs)
        first = self.reuse_layers()[0].ffn_view().down
        config.ffn().warn_unused_neurons(first.in_features)

    @can_return_tuple
    def forward(
        self,
        *args: Any,
        output_router_logits: bool | None = None,
        output_reuse_plans: bool = False,
        decisions: Decisions | None = None,
        **kwargs: Any,
    ) -> Any:
        """The family's own, with router logits and plans.

        Args:
            args, kwargs: of the family's forward pass.
            output_router_logits: return router logits; by default when the config says so.
            output_reuse_plans: return what each layer decided.
            decisions: where a head collects them; the output is the family's own then.

        Raises:
            ConfigError: the balance loss should train a router but will have no gradient.
        """
        self._show(kwargs.get("input_ids", args[0] if args else None))
        if self.training and not self._looked_for_dead and not torch.compiler.is_compiling():
            self._warn_of_dead_reuse()
        if decisions is not None:
            return super().forward(*args, decisions=decisions, return_dict=True, **kwargs)
        if output_router_logits is None:
            output_router_logits = self.config.output_router_logits
        if output_router_logits or output_reuse_plans:
            decisions = Decisions()
        outputs = super().forward(*args, decisions=decisions, return_dict=True, **kwargs)
        if decisions is None:
            self._warn_of_lost_balance()
            return ReuseModelOutput(**outputs)
        decisions.complete = True
        if output_router_logits:
            self.check_balance_gradient(decisions)
        return ReuseModelOutput(
            **outputs,
            router_logits=decisions.router_logits() if output_router_logits else None,
            reuse_plans=tuple(decisions.made) if output_reuse_plans else None,
        )

    def _show(self, input_ids: Tensor | None) -> None:
        """Let controllers that want to know the tokens see them, see `ffn/registry.py`."""
        layers: Any = self.layers  # to look through all modules would take time at every token
        for layer in layers:
            controller = layer.controller
            if type(controller) not in OWN_CONTROLLERS and hasattr(controller, "see"):
                controller.see(input_ids)

    def _warn_of_dead_reuse(self) -> None:
        """Say once that training pays for a reuse which adds nothing, and can't learn to.

        So it is after adapters were put on a fresh conversion as on any other model.
        """
        weights = [w for layer in self.reuse_layers() for w in layer.outlets().values()]
        if not weights or not torch.is_grad_enabled() or any(w.requires_grad for w in weights):
            return
        self._looked_for_dead = True
        if not any(bool(weight.any()) for weight in weights):
            warnings.warn(
                "all learned gains are 0 and none of them is trained, so loops and experts are "
                "paid for and have no effect: train them too (PEFT: "
                "get_peft_model(model, versatileffn.lora_config(model))), or fine-tune "
                "versatileffn.to_dense(model)",
                stacklevel=2,
            )

    def _warn_of_lost_balance(self) -> None:
        """Say so where somebody else computes the training loss, without the balance loss."""
        if not torch.compiler.is_compiling() and self.trains_balance():
            warnings.warn(
                "a loss that is computed outside of the model, or from its base model, lacks the "
                "balance loss: pass labels to the model, or ask it for output_router_logits=True "
                "and add model.router_aux_loss_coef * output.aux_loss",
                stacklevel=2,
            )
