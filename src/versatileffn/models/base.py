"""What all our models share, and the base model's forward pass."""

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from transformers import PreTrainedModel
from transformers import initialization as init
from transformers.modeling_outputs import MoeModelOutputWithPast
from transformers.utils import can_return_tuple

from versatileffn.errors import CheckpointError, ConfigError
from versatileffn.execution.select import Execution
from versatileffn.ffn.moe import Routing
from versatileffn.ffn.plan import ReusePlan
from versatileffn.ffn.registry import name_of
from versatileffn.ffn.values import check_value
from versatileffn.layer import NEW_TENSORS
from versatileffn.models.decisions import Decisions
from versatileffn.models.layer import ReuseLayer
from versatileffn.models.weights import align

OLD_TENSORS = {
    r"\.controller\.loop_gains$": ".gains.loop_gains",
    r"\.controller\.width_gain$": ".gains.width_gain",
}
"""Tensors of older checkpoints, and what they are called today."""
_DRAWN = ContextVar("versatileffn_new_tensors_drawn", default=False)


@contextmanager
def new_tensors_drawn() -> Iterator[None]:
    """Let what a variant adds be missing from the checkpoints that are loaded inside.

    It is drawn at random then, which is what a conversion from a dense model wants and nobody else.
    """
    token = _DRAWN.set(True)
    try:
        yield
    finally:
        _DRAWN.reset(token)


@dataclass
class ReuseModelOutput(MoeModelOutputWithPast):
    """Transformers' MoE output of a base model, with the plans.

    Args:
        router_logits: one [B·T, N] for each layer, when asked for; None without a router.
        reuse_plans: what each layer decided, when asked for.
    """

    reuse_plans: tuple[ReusePlan | Routing, ...] | None = None


class ReusePreTrainedModel(PreTrainedModel):
    """Mixin for every model of a family: building, initialization, loading and saving.

    Decisions need more than 8 bits: a checkpoint that is loaded in half precision, or quantized,
    keeps the few weights that make them, and the gains, in float32.

    Attributes:
        own_init: the family's constructor, which makes our classes where it makes its own.
        router_aux_loss_coef: weight of the balance loss in the training loss.
    """

    own_init: ClassVar[Callable[..., None]]
    _keep_in_fp32_modules_strict = [".*controller", ".*experts.router", ".*gains"]  # noqa: RUF012

    def __init__(self, config: Any, *args: Any, **kwargs: Any) -> None:
        type(self).own_init(self, config, *args, **kwargs)
        assert self.reuse_layers(), "the family's constructor made none of our layers"
        ffn = config.ffn()
        self.router_aux_loss_coef = getattr(ffn, "router_aux_loss_coef", 0.0)
        # On a CPU real experts split their rows by counts that a graph can't know.
        self._can_compile_fullgraph = self._can_compile_fullgraph and ffn.variant != "moe"

    def reuse_layers(self) -> list[ReuseLayer]:
        """The layers whose FFN is reused, in order."""
        return [module for module in self.modules() if isinstance(module, ReuseLayer)]

    def set_tau(self, tau: float) -> None:
        """Set the temperature τ of Eq. 10 in every layer, and in the config so that it is saved.

        Raises:
            ConfigError: τ isn't a positive number.
        """
        check_value("tau", tau, float)
        if not tau > 0:
            raise ConfigError(f"tau={tau!r} must be a positive number")
        self.config.tau = tau
        for layer in self.reuse_layers():
            layer.set_tau(tau)

    def set_execution(self, execution: Execution) -> None:
        """Choose how every layer carries out its plans; of the running model, never saved.

        Raises:
            ConfigError: there is no such way.
        """
        check_value("execution", execution, Execution)
        for layer in self.reuse_layers():
            layer.execution = execution

    @torch.no_grad()
    @init.guard_torch_init_functions()
    def initialize_weights(self) -> None:
        """Transformers' own; then what a variant adds, as far as it wasn't loaded, by its rules."""
        super().initialize_weights()
        std = getattr(self.config, "initializer_range", 0.02)
        for layer in self.reuse_layers():
            for new in (layer.controller, layer.experts, layer.gains, layer.loop_weights):
                weights = [] if new is None else list(new.parameters())
                if not all(getattr(weight, "_is_hf_initialized", False) for weight in weights):
                    new.reset_parameters(std)
                    for weight in weights:
                        weight._is_hf_initialized = True

    @classmethod
    def from_pretrained(cls, *args: Any, **kwargs: Any) -> Any:
        """Transformers' own, strict about what a variant adds, and with weights at aligned
        addresses.

        Learned gains are a few bytes long, so in a memory-mapped file the tensors behind them
        start anywhere, and matrix products on such addresses round differently.

        Raises:
            CheckpointError: the checkpoint lacks tensors of the reuse, or has others.
        """
        asked = kwargs.pop("output_loading_info", False)
        kwargs["key_mapping"] = OLD_TENSORS | (kwargs.get("key_mapping") or {})
        model, info = super().from_pretrained(*args, output_loading_info=True, **kwargs)
        _check_new_tensors(info, str(args[0] if args else "the checkpoint"))
        model._weight_conversions = [  # with the old names there, a save would bring them back
            conversion
            for conversion in getattr(model, "_weight_conversions", None) or []
            if not set(conversion.target_patterns) & set(OLD_TENSORS.values())
        ]
        align(model)
        return (model, info) if asked else model

    def save_pretrained(self, *args: Any, **kwargs: Any) -> Any:
        """Transformers' own.

        Raises:
            ConfigError: a controller couldn't be found again by the name in the config.
        """
        named = getattr(self.config.ffn(), "controller", None)
        for layer in self.reuse_layers():
            if named is not None and name_of(layer.controller) != named:
                raise ConfigError(
                    f"a {type(layer.controller).__name__} decides, but the config names the "
                    f"controller {named!r}, which a reload would make instead: give its class a "
                    "name with @register_controller(name), and set config.reuse['controller'] to it"
                )
        return super().save_pretrained(*args, **kwargs)

    def check_balance_gradient(self, decisions: Decisions) -> None:
        """Reentrant checkpointing runs layers without gradients and would lose this one silently.

        Raises:
            ConfigError: routers are trained, but the balance loss has no gradient.
        """
        lost = decisions.without_gradient and torch.is_grad_enabled() and self.training
        if lost and self.router_aux_loss_coef and self._trains_routers():
            raise ConfigError(
                "the balance loss has no gradient under reentrant gradient checkpointing: pass "
                "gradient_checkpointing_kwargs={'use_reentrant': False}, or set "
                "router_aux_loss_coef=0"
            )

    def _trains_routers(self) -> bool:
        for layer in self.reuse_layers():
            router = layer.controller if layer.experts is None else layer.experts.router
            if any(weight.requires_grad for weight in router.parameters()):
                return True
        return False


def _check_new_tensors(info: dict[str, Any], source: str) -> None:
    """Refuse a checkpoint whose reuse isn't the config's: Transformers would draw it at random.

    Raises:
        CheckpointError: with the first tensor that is missing, or that nobody knows.
    """
    for kind, says in (("missing_keys", "lacks"), ("unexpected_keys", "has unknown")):
        names = sorted(n for n in info[kind] if any(f".{new}" in n for new in NEW_TENSORS))
        if names and not _DRAWN.get():
            raise CheckpointError(
                f"{source} {says} tensors of the reuse, {names[0]} among {len(names)}: its config "
                "and weights don't belong together; a dense checkpoint is converted by "
                "versatileffn.upcycle"
            )


class ReuseBaseModel(ReusePreTrainedModel):
    """Mixin for a family's base model, whose layers are `ReuseLayer`s."""

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
        if decisions is not None:
            return super().forward(*args, decisions=decisions, return_dict=True, **kwargs)
        if output_router_logits is None:
            output_router_logits = self.config.output_router_logits
        if output_router_logits or output_reuse_plans:
            decisions = Decisions()
        outputs = super().forward(*args, decisions=decisions, return_dict=True, **kwargs)
        if decisions is None:
            return ReuseModelOutput(**outputs)
        decisions.complete = True
        if output_router_logits:
            self.check_balance_gradient(decisions)
        return ReuseModelOutput(
            **outputs,
            router_logits=decisions.router_logits() if output_router_logits else None,
            reuse_plans=tuple(decisions.made) if output_reuse_plans else None,
        )
