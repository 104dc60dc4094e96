"""The causal language model's loss and outputs, the same for every family and variant."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers import initialization as init
from transformers.modeling_outputs import MoeCausalLMOutputWithPast
from transformers.utils import can_return_tuple

from versatileffn.errors import ConfigError
from versatileffn.ffn.controller import ReuseController
from versatileffn.ffn.gains import LoopGains
from versatileffn.ffn.losses import balance_loss
from versatileffn.ffn.moe import SparseExperts
from versatileffn.ffn.plan import ReusePlan
from versatileffn.models.layer import ReuseLayer

ALIGNMENT = 16
"""Bytes; what the widest vector loads of common CPU kernels expect at least."""


@dataclass
class ReuseCausalLMOutput(MoeCausalLMOutputWithPast):
    """Transformers' MoE output, with the plans.

    Args:
        loss: nats per token; in training mode with `router_aux_loss_coef · aux_loss` added.
        aux_loss: the balance loss, averaged over layers; None without a router.
        router_logits: one [B·T, N] for each layer, when asked for.
        reuse_plans: one plan for each layer, with `output_reuse_plans=True` (versatile only).
    """

    reuse_plans: tuple[ReusePlan, ...] | None = None


class ReuseInitMixin(PreTrainedModel):
    """Initialization of what a variant adds, and loading that changes no bit of the results."""

    @classmethod
    def from_pretrained(cls, *args: Any, **kwargs: Any) -> Any:
        """Transformers' own, with weights at aligned addresses.

        Learned gains are a few bytes long, so in a memory-mapped file the tensors behind them
        start anywhere, and matrix products on such addresses round differently.
        """
        loaded = super().from_pretrained(*args, **kwargs)
        model = loaded[0] if isinstance(loaded, tuple) else loaded
        for parameter in model.parameters():
            if parameter.device.type == "cpu" and parameter.data_ptr() % ALIGNMENT:
                parameter.data = parameter.data.clone()
        return loaded

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        super()._init_weights(module)
        std = self.config.initializer_range
        if isinstance(module, SparseExperts):
            init.normal_(module.gate_up_proj, mean=0.0, std=std)
            init.normal_(module.down_proj, mean=0.0, std=std)
        elif isinstance(module, LoopGains | ReuseController):
            for name, gain in module.named_parameters(recurse=False):
                assert name in ("loop_gains", "width_gain")
                init.zeros_(gain)


class ReuseCausalLMMixin:
    """Forward pass of a causal language model with `model` and `lm_head`."""

    config: Any
    model: nn.Module
    lm_head: nn.Module
    training: bool
    loss_function: Any

    def set_tau(self, tau: float) -> None:
        """Set the temperature τ of Eq. 10 in every layer, and in the config so that it is saved.

        Raises:
            ConfigError: τ isn't a positive number.
        """
        if isinstance(tau, bool) or not isinstance(tau, int | float) or not 0 < tau < float("inf"):
            raise ConfigError(f"tau={tau!r} must be a positive number")
        self.config.tau = tau
        for layer in self.model.modules():
            if isinstance(layer, ReuseLayer) and layer.controller is not None:
                for module in layer.controller.modules():  # one may wrap another
                    if hasattr(module, "tau"):
                        module.tau = tau  # type: ignore[assignment]

    @can_return_tuple
    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        labels: Tensor | None = None,
        output_router_logits: bool | None = None,
        logits_to_keep: int | Tensor = 0,
        num_items_in_batch: Tensor | int | None = None,
        output_reuse_plans: bool = False,
        **kwargs: Any,
    ) -> ReuseCausalLMOutput:
        """Next-token logits and loss.

        Args:
            input_ids: [B, T].
            attention_mask: [B, T], 0 for padding; the balance loss leaves padding out.
            labels: [B, T], −100 where no loss is wanted; shifted here, as everywhere in
                Transformers.
            output_router_logits: record router logits and compute `aux_loss`. By default when
                the config says so, and whenever a loss is computed in training mode.
            logits_to_keep: last positions, or indices, to compute logits for; 0 means all.
            num_items_in_batch: predicted tokens of the whole batch when this call sees one
                micro-batch of it, as Trainer passes it. The balance loss is then weighted by this
                micro-batch's share, so accumulation averages it instead of adding it up.
            output_reuse_plans: return each layer's plan (versatile only).
            kwargs: passed on to the family's base model and to the loss.

        Raises:
            ConfigError: the balance loss should train a router but has no gradient.
        """
        if output_router_logits is None:
            wanted_for_loss = self.training and labels is not None
            output_router_logits = self.config.output_router_logits or wanted_for_loss
        outputs = self.model(
            input_ids=input_ids,
            attention_mask=attention_mask,
            output_router_logits=output_router_logits,
            output_reuse_plans=output_reuse_plans,
            **kwargs,
        )
        kept = slice(-logits_to_keep, None) if isinstance(logits_to_keep, int) else logits_to_keep
        logits = self.lm_head(outputs.last_hidden_state[:, kept, :])
        aux_loss = self._aux_loss(outputs.router_logits, attention_mask)

        loss = None
        if labels is not None:
            loss = self.loss_function(
                logits=logits,
                labels=labels,
                vocab_size=self.config.vocab_size,
                num_items_in_batch=num_items_in_batch,
                **kwargs,
            )
            if self.training and aux_loss is not None:
                share = share_of_batch(kwargs.get("shift_labels"), labels, num_items_in_batch)
                loss = loss + self.config.router_aux_loss_coef * share * aux_loss.to(loss.device)
        return ReuseCausalLMOutput(
            loss=loss,
            aux_loss=aux_loss,  # type: ignore[arg-type]
            logits=logits,
            past_key_values=outputs.past_key_values,
            hidden_states=outputs.hidden_states,
            attentions=outputs.attentions,
            router_logits=outputs.router_logits,
            reuse_plans=outputs.reuse_plans,
        )

    def _aux_loss(
        self, router_logits: tuple[Tensor, ...] | None, attention_mask: Tensor | None
    ) -> Tensor | None:
        """The balance loss, averaged over layers."""
        if not router_logits:
            return None
        mask = attention_mask
        if mask is not None and (mask.dim() != 2 or mask.numel() != len(router_logits[0])):
            mask = None  # it isn't one of padding, or speaks of cached tokens, too
        top_k = self.config.num_experts_per_tok
        losses = [balance_loss(logits.float(), top_k, mask) for logits in router_logits]
        return torch.stack([loss.to(losses[0].device) for loss in losses]).mean()


def share_of_batch(
    shift_labels: Tensor | None, labels: Tensor, num_items_in_batch: Tensor | int | None
) -> Tensor | float:
    """The part of the batch's predicted tokens that this micro-batch holds; 1 if it is all.

    Counted as Trainer counts them: shifted labels where the batch has them, else all labels but
    each row's first.
    """
    if num_items_in_batch is None:
        return 1.0
    counted = labels[..., 1:] if shift_labels is None else shift_labels
    return (counted != -100).sum() / num_items_in_batch
