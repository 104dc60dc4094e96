"""What all our models share: how they are built, initialized, loaded and saved."""

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, ClassVar

import torch
from torch import Tensor
from transformers import PreTrainedModel
from transformers import initialization as init

from versatileffn.budget import set_compute_budget
from versatileffn.errors import CheckpointError, ConfigError
from versatileffn.execution.select import Execution
from versatileffn.ffn.controller import ConstantController
from versatileffn.ffn.registry import CONTROLLERS
from versatileffn.ffn.router_bias import RouterBias
from versatileffn.ffn.values import check_value
from versatileffn.layer import NEW_TENSORS
from versatileffn.models.alignment import align
from versatileffn.models.decisions import Decisions
from versatileffn.models.layer import ReuseLayer

OLD_TENSORS = {
    r"\.controller\.loop_gains$": ".gains.loop_gains",
    r"\.controller\.width_gain$": ".gains.width_gain",
}
"""Tensors of older checkpoints, and what they are called today."""
FLOAT32 = (".*controller", ".*experts.router", ".*gains")
"""Decisions need more than 8 bits: a checkpoint that is loaded in half precision, or quantized,
keeps these few weights in float32."""
FLOAT32_FLAGS = ("_keep_in_fp32_modules", "_keep_in_fp32_modules_strict")
"""Where Transformers looks for them: quantizers in the first, half precision in the second."""
BUDGET = ("max_loops", "mean_loops")
"""What a budget is made of."""
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


class ReusePreTrainedModel(PreTrainedModel):
    """Mixin for every model of a family: building, initialization, loading and saving.

    Attributes:
        own_init: the family's constructor, which makes our classes where it makes its own.
        router_aux_loss_coef: weight of the balance loss in the training loss.
        loop_prior, loop_prior_coef: the prior of exits, and the weight of the distance to it.
    """

    own_init: ClassVar[Callable[..., None]]

    def __init__(self, config: Any, *args: Any, **kwargs: Any) -> None:
        type(self).own_init(self, config, *args, **kwargs)
        assert self.reuse_layers(), "the family's constructor made none of our layers"
        ffn = config.ffn()
        self.router_aux_loss_coef = getattr(ffn, "router_aux_loss_coef", 0.0)
        self.loop_prior = getattr(ffn, "loop_prior", 1.0)
        self.loop_prior_coef = getattr(ffn, "loop_prior_coef", 0.0)
        # On a CPU real experts split their rows by counts that a graph can't know.
        self._can_compile_fullgraph = self._can_compile_fullgraph and ffn.variant != "moe"

    def reuse_layers(self) -> list[ReuseLayer]:
        """All decoder layers in order, those too that `reuse_layers` leaves as they are."""
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

    def set_open_loops(self, open_loops: int, newest: float = 1.0) -> None:
        """Let tokens choose among the first loops only; of the running model, never saved.

        Args:
            open_loops: 1 to L.
            newest: with which the last open loop's gain is multiplied, 0 to 1; never the first's.

        Raises:
            ConfigError: it is none of 1 … L, or the factor is out of range.
        """
        check_value("open_loops", open_loops, int)
        most = self.config.ffn().loops
        if open_loops > most:
            raise ConfigError(f"open_loops={open_loops} exceeds max_loops={most}: lower it")
        check_value("newest", newest, float)
        if not 0 <= newest <= 1:
            raise ConfigError(f"newest={newest!r} must lie between 0 and 1")
        for layer in self.reuse_layers():
            for decider in layer.deciders("open_loops"):
                decider.open_loops = open_loops
                layer.opened = max(1, open_loops - 1 + newest) if newest < 1 else math.inf

    def sample_loops(self, ratio: float | None) -> None:
        """Draw depths by lot in training; of the running model, never saved.

        Loop predictors are not asked then, and don't train. In evaluation mode every token takes
        all open loops.

        Args:
            ratio: of the prior that is drawn from, see `ffn/loop_prior.py`; None ends it.
        """
        for layer in self.reuse_layers():
            for decider in layer.deciders("sampled_loops"):
                decider.sampled_loops = ratio
                if decider.loop_head is not None:
                    decider.loop_head.requires_grad_(ratio is None)

    def move_router_biases(self) -> None:
        """After an optimizer step, where `router_bias_rate` is set: move biases against the loads.

        `versatileffn train` does so; a training loop of your own has to.
        """
        for module in self.modules():
            if isinstance(module, RouterBias):
                module.move()

    def set_reuse_noise(self, on: bool) -> None:
        """Let training mode draw noise in its decisions, as the paper does, or decide as evaluation
        does; of the running model, never saved.

        Preference losses compare a policy in training mode with its reference: off, both decide
        alike at step 0.
        """
        check_value("on", on, bool)
        for layer in self.reuse_layers():
            for decider in layer.deciders("noise"):
                decider.noise = on

    def set_execution(self, execution: Execution) -> None:
        """Choose how every layer carries out its plans; of the running model, never saved.

        Raises:
            ConfigError: there is no such way.
        """
        check_value("execution", execution, Execution)
        for layer in self.reuse_layers():
            layer.execution = execution

    def set_compute_budget(
        self, max_loops: int | Tensor | None = None, mean_loops: float | None = None
    ) -> None:
        """Say what tokens may spend from now on; of the running model, never saved.

        Args:
            max_loops: the most loops of every token, or of each sequence in the batch, [B].
            mean_loops: loops per token on average; needs the curve of `versatileffn calibrate`.

        Raises:
            ConfigError: a number is out of range, the model decides nothing, or has no curve.
        """
        set_compute_budget(self, max_loops, mean_loops)

    @torch.no_grad()
    @init.guard_torch_init_functions()
    def initialize_weights(self) -> None:
        """What a variant adds, as far as it wasn't loaded, by its own rules; then Transformers'."""
        std = getattr(self.config, "initializer_range", 0.02)
        for layer in self.reuse_layers():
            new = (layer.controller, layer.experts, layer.gains, layer.loop_weights)
            for module in (each for each in new if each is not None):
                weights: list[Any] = list(module.parameters())
                if not all(getattr(weight, "_is_hf_initialized", False) for weight in weights):
                    module.reset_parameters(std)
                for drawn in (*weights, *module.modules()):  # Transformers' rules pass them over
                    drawn._is_hf_initialized = True
        super().initialize_weights()

    @classmethod
    def from_pretrained(cls, *args: Any, **kwargs: Any) -> Any:
        """Transformers' own, strict about what a variant adds, and with weights at aligned
        addresses.

        `max_loops` and `mean_loops` set a budget, see `set_compute_budget`: the weights stay those
        of all loops.

        Learned gains are a few bytes long, so in a memory-mapped file the tensors behind them
        start anywhere, and matrix products on such addresses round differently.

        Raises:
            CheckpointError: the checkpoint lacks tensors of the reuse, or has others.
            ConfigError: the budget is out of range, or the model decides nothing.
        """
        asked_for = {name: kwargs.pop(name, None) for name in BUDGET}
        asked = kwargs.pop("output_loading_info", False)
        kwargs["key_mapping"] = OLD_TENSORS | (kwargs.get("key_mapping") or {})
        loaded: Any = super().from_pretrained(*args, output_loading_info=True, **kwargs)
        model, info = loaded
        _check_plan(model)
        _check_new_tensors(info, str(args[0] if args else "the checkpoint"))
        model._weight_conversions = [  # with the old names there, a save would bring them back
            conversion
            for conversion in getattr(model, "_weight_conversions", None) or []
            if not set(conversion.target_patterns) & set(OLD_TENSORS.values())
        ]
        align(model)
        if any(value is not None for value in asked_for.values()):
            model.set_compute_budget(**asked_for)
        return (model, info) if asked else model

    def save_pretrained(self, *args: Any, **kwargs: Any) -> Any:
        """Transformers' own.

        Raises:
            ConfigError: a controller couldn't be found again by the name in the config.
        """
        ffn = self.config.ffn()
        for index, layer in enumerate(self.reuse_layers()):
            decider = getattr(layer.controller, "original_module", layer.controller)  # PEFT wraps
            named = getattr(ffn.at_layer(index), "controller", None)
            expected = ConstantController if named is None else CONTROLLERS.get(named)
            if decider is not None and type(decider) is not expected:
                raise ConfigError(
                    f"a {type(decider).__name__} decides, but a reload would make a "
                    f"{getattr(expected, '__name__', None)}, by the config's controller={named!r}: "
                    "give its class a name with @register_controller(name), and set "
                    "config.reuse['controller'] to it"
                )
        generation: Any = getattr(self, "generation_config", None)
        if any(getattr(generation, name, None) is not None for name in BUDGET):
            generation._from_model_config = False  # of derived ones a load keeps what it knows
        return super().save_pretrained(*args, **kwargs)

    @classmethod
    def register_for_auto_class(cls, auto_class: str = "AutoModel") -> None:
        """Nothing: Transformers would copy the one module that this class stands in."""

    def check_balance_gradient(self, decisions: Decisions) -> None:
        """Reentrant checkpointing runs layers without gradients and would lose this one silently.

        Raises:
            ConfigError: the balance loss is there to train a router, but has no gradient.
        """
        if decisions.without_gradient and self.trains_balance():
            raise ConfigError(
                "the balance loss has no gradient under reentrant gradient checkpointing: pass "
                "gradient_checkpointing_kwargs={'use_reentrant': False}, or set "
                "router_aux_loss_coef=0"
            )

    def trains_balance(self) -> bool:
        """Whether a loss on decisions, of balance or to a prior, would train anything now."""
        weight = self.router_aux_loss_coef or self.loop_prior_coef
        if not (self.training and torch.is_grad_enabled() and weight):
            return False
        return any(layer.trains_choice() for layer in self.reuse_layers())


def _check_plan(model: ReusePreTrainedModel) -> None:
    """Refuse a plan of one's own for tensor parallelism that divides an FFN; ours leaves it whole.

    Raises:
        ConfigError: it would compute something else than one process.
    """
    mlp = model.reuse_layers()[0].family.mlp
    divided = [name for name in model.tp_plan or () if f".{mlp}." in name]
    if divided:
        raise ConfigError(
            f"tensor parallelism can't divide {divided[0]}: experts are slices of its neurons, and "
            "each process would take others for them; leave it out of the plan, and it stays whole"
        )


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
