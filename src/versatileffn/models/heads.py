"""A family's heads: their own forward pass and loss, with the balance loss and what was decided."""

from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any, ClassVar

from torch import Tensor
from transformers.modeling_outputs import (
    MoeCausalLMOutputWithPast,
    QuestionAnsweringModelOutput,
    SequenceClassifierOutputWithPast,
    TokenClassifierOutput,
)
from transformers.utils import can_return_tuple

from versatileffn.budget import compute_budget
from versatileffn.errors import ConfigError
from versatileffn.ffn.moe import Routing
from versatileffn.ffn.plan import ReusePlan
from versatileffn.models.decisions import Decisions
from versatileffn.models.pretrained import BUDGET, ReusePreTrainedModel

EXPANDING = ("num_beams", "num_return_sequences")
"""Of generation: each sequence becomes as many as the larger of these."""


@dataclass
class ReuseCausalLMOutput(MoeCausalLMOutputWithPast):
    """Transformers' MoE output, with the plans.

    Args:
        loss: nats per token; in training mode with `router_aux_loss_coef · aux_loss` added.
        aux_loss: the balance loss, averaged over layers; None without a router.
        router_logits: one [B·T, N] for each layer, when asked for.
        reuse_plans: what each layer decided, with `output_reuse_plans=True`.
        prior_loss: distance of the mean exits to `loop_prior`, averaged over layers, in nats; added
            to a training loss, and computed for it only, with the weight `loop_prior_coef`.
    """

    reuse_plans: tuple[ReusePlan | Routing, ...] | None = None
    prior_loss: Tensor | None = None


@dataclass
class Decided:
    """Further fields of an output, as in `ReuseCausalLMOutput`."""

    aux_loss: Tensor | None = None
    router_logits: tuple[Tensor, ...] | None = None
    reuse_plans: tuple[ReusePlan | Routing, ...] | None = None
    prior_loss: Tensor | None = None


@dataclass
class ReuseClassifierOutput(Decided, SequenceClassifierOutputWithPast):
    """Transformers' output of a classifier of sequences, with what was decided."""


@dataclass
class ReuseTokenClassifierOutput(Decided, TokenClassifierOutput):
    """Transformers' output of a classifier of tokens, with what was decided."""


@dataclass
class ReuseQuestionAnsweringOutput(Decided, QuestionAnsweringModelOutput):
    """Transformers' output of a model that finds answers in a text, with what was decided."""


class ReuseHead(ReusePreTrainedModel):
    """Mixin for a family's model with a head.

    Attributes:
        output_class: what it returns.
        shifts_labels: labels are tokens, each predicted at the position before it.
    """

    output_class: ClassVar[type[Any]]
    shifts_labels: ClassVar[bool]

    @can_return_tuple
    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        labels: Tensor | None = None,
        num_items_in_batch: Tensor | int | None = None,
        output_router_logits: bool | None = None,
        output_reuse_plans: bool = False,
        **kwargs: Any,
    ) -> Any:
        """The family's own, with the losses on what was decided.

        Args:
            input_ids: [B, T].
            attention_mask: [B, T], 0 for padding; the balance loss leaves padding out.
            labels: as the family's forward pass wants them.
            num_items_in_batch: labels of the whole batch when this call sees one micro-batch of
                it, as Trainer passes it. The balance loss is then weighted by this micro-batch's
                share, so accumulation averages it instead of adding it up.
            output_router_logits: record router logits and compute `aux_loss`. By default when
                the config says so, and whenever a loss is computed in training mode.
            output_reuse_plans: return what each layer decided.
            kwargs: of the family's forward pass.

        Raises:
            ConfigError: the balance loss should train a router but has no gradient, or the loss to
                a prior has nothing to speak of.
        """
        answers = kwargs.get("start_positions") is not None  # what such a model has for labels
        adds_balance = self.training and (labels is not None or answers)
        if labels is not None:
            kwargs["labels"] = labels
        if output_router_logits is None:
            output_router_logits = self.config.output_router_logits or adds_balance
        adds_prior = adds_balance and self.loop_prior_coef > 0
        if output_router_logits or output_reuse_plans or adds_prior:
            kwargs["decisions"] = decisions = Decisions()
        else:
            decisions = None
        if num_items_in_batch is not None:
            kwargs["num_items_in_batch"] = num_items_in_batch
        outputs = super().forward(
            input_ids=input_ids,
            attention_mask=attention_mask,
            return_dict=True,
            **kwargs,
        )
        if decisions is None:
            return self.output_class(**outputs)
        decisions.complete = True
        fields = dict(outputs)
        added: list[tuple[float, Tensor | None]] = []
        if output_router_logits or adds_prior:
            self.check_balance_gradient(decisions)
        if output_router_logits:
            aux_loss = decisions.balance_loss(attention_mask)
            fields |= {"router_logits": decisions.router_logits(), "aux_loss": aux_loss}
            added.append((self.router_aux_loss_coef, aux_loss))
        if adds_prior:
            fields["prior_loss"] = self._prior_loss(decisions, attention_mask)
            added.append((self.loop_prior_coef, fields["prior_loss"]))
        if adds_balance:
            share = self._share_of_batch(labels, kwargs.get("shift_labels"), num_items_in_batch)
            for weight, loss in added:
                if loss is not None:
                    fields["loss"] = fields["loss"] + weight * share * loss.to(outputs.loss.device)
        if output_reuse_plans:
            fields["reuse_plans"] = tuple(decisions.made)
        return self.output_class(**fields)

    def _prior_loss(self, decisions: Decisions, attention_mask: Tensor | None) -> Tensor:
        """How far exits are from the prior.

        Raises:
            ConfigError: no layer says how likely its exits are.
        """
        loss = decisions.prior_loss(self.loop_prior, attention_mask)
        if loss is None:
            raise ConfigError(
                f"loop_prior_coef={self.loop_prior_coef:g} has no effect: no controller's plans "
                "have loop_logits; leave it out"
            )
        return loss

    def _share_of_batch(
        self,
        labels: Any,
        shift_labels: Tensor | None,
        num_items_in_batch: Tensor | int | None,
    ) -> Tensor | float:
        """The part of the batch's labels that this micro-batch holds; 1 if it is all.

        Counted as Trainer counts them: shifted labels where the batch has them, else all labels,
        of tokens all but each row's first.
        """
        if num_items_in_batch is None or labels is None:
            return 1.0
        counted = labels[..., 1:] if self.shifts_labels else labels
        counted = counted if shift_labels is None else shift_labels
        return (counted != -100).sum() / num_items_in_batch


class ReuseForCausalLM(ReuseHead):
    """Mixin for a family's causal language model."""

    output_class = ReuseCausalLMOutput
    shifts_labels = True

    def generate(
        self,
        inputs: Tensor | None = None,
        generation_config: Any = None,
        *args: Any,
        max_loops: int | Tensor | None = None,
        mean_loops: float | None = None,
        **kwargs: Any,
    ) -> Any:
        """Transformers' own, with a budget for this call.

        Args:
            inputs, generation_config, args, kwargs: of Transformers' `generate`.
            max_loops, mean_loops: see `set_compute_budget`. Where neither is given, what the
                generation config says (`model.generation_config.max_loops = 2` is saved with the
                model), or else the budget that the model has.

        Raises:
            ConfigError: the budget is out of range, the model decides nothing, or has no curve.
        """
        configs = [config for config in (generation_config, self.generation_config) if config]

        def asked(name: str) -> Any:
            found = (getattr(config, name, None) for config in configs)
            return next((value for value in found if value is not None), None)

        if max_loops is None and mean_loops is None:
            max_loops, mean_loops = (asked(name) for name in BUDGET)
        if isinstance(max_loops, Tensor) and max_loops.dim():  # beams are sequences of their own
            rows = (kwargs.get(name) or asked(name) or 1 for name in EXPANDING)
            max_loops = max_loops.repeat_interleave(max(rows))
        kept = max_loops is None and mean_loops is None
        with nullcontext() if kept else compute_budget(self, max_loops, mean_loops):
            return super().generate(inputs, generation_config, *args, **kwargs)  # type: ignore[misc]


class ReuseForSequenceClassification(ReuseHead):
    """Mixin for a family's classifier of sequences."""

    output_class = ReuseClassifierOutput
    shifts_labels = False


class ReuseForTokenClassification(ReuseHead):
    """Mixin for a family's classifier of tokens."""

    output_class = ReuseTokenClassifierOutput
    shifts_labels = False


class ReuseForQuestionAnswering(ReuseHead):
    """Mixin for a family's model that finds where in a text an answer begins and ends."""

    output_class = ReuseQuestionAnsweringOutput
    shifts_labels = False
