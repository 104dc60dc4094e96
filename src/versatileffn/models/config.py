"""Configs of models whose FFN is reused: the dense model's, and one nested field."""

import dataclasses
import importlib
from collections.abc import Iterable
from dataclasses import dataclass
from difflib import get_close_matches
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from transformers import AutoConfig, PreTrainedConfig

from versatileffn.errors import ConfigError
from versatileffn.ffn.base_config import VARIANTS, FFNConfig
from versatileffn.ffn.controller import START_TAU
from versatileffn.ffn.values import check_value
from versatileffn.models.table import FAMILIES, OURS, Family, family_of
from versatileffn.portable.source import MODELLING, modelling_source

FLAT = {"ffn_variant": "variant", "num_experts_per_tok": "top_k"}
"""What older checkpoints, whose fields stand beside the dense model's, call knobs."""
OLD_SETTINGS = {"ffn_variant", "execution"}
"""Names of such checkpoints that are no knobs any more."""
LOOPS = ("max_loops", "mean_loops", "num_loops")
"""Knobs that somebody may want to turn when the weights are there."""
OWN_NAMES = ("model_type", "architectures", "transformers_version", "auto_map")
"""What a config says of the class that wrote it."""


@dataclass(kw_only=True)
class ReuseConfig:
    """Mixin for a family's config: how the FFN is reused, and where the temperature stands.

    Args:
        reuse: the variant and its knobs, as `FFNConfig.to_dict` writes them; None is the paper's.
        tau: temperature τ of Eq. 10, where `set_tau` left it.
        loop_curve: what a mean of loops costs, as `versatileffn calibrate` measured it.
        output_router_logits: return router logits without being asked, as in Transformers.

    Raises:
        ConfigError: a knob is unknown, out of range, stands outside of `reuse`, or doesn't fit.
    """

    reuse: dict[str, Any] | None = None
    tau: float = START_TAU
    loop_curve: list[dict[str, float]] | None = None
    output_router_logits: bool = False

    def __post_init__(self, **kwargs: Any) -> None:
        _refuse_knobs(kwargs)
        super().__post_init__(**kwargs)  # type: ignore[misc]
        self.check_curve()
        check_value("output_router_logits", self.output_router_logits, bool)
        self.reuse = FFNConfig.from_dict({} if self.reuse is None else self.reuse).to_dict()
        self.ffn().check_layers(self.num_hidden_layers)  # type: ignore[attr-defined]
        d_hidden = getattr(self, "intermediate_size", None)
        if isinstance(d_hidden, int):
            self.ffn().expert_size(d_hidden)
        # Auto classes are asked for a model with a config in hand: time to have one.
        from versatileffn.models.family import announce

        announce(self.model_type.removeprefix(OURS))  # type: ignore[attr-defined]

    def check_curve(self) -> None:
        """Refuse a curve that nothing can be looked up in.

        Raises:
            ConfigError: a point isn't one.
        """
        if self.loop_curve is None:
            return
        points = self.loop_curve if isinstance(self.loop_curve, list) else [self.loop_curve]
        for point in points:
            if not isinstance(point, dict) or not {"penalty", "mean_loops"} <= point.keys():
                raise ConfigError(
                    f"loop_curve holds {point!r}, no point with a penalty and mean_loops: run "
                    "`versatileffn calibrate` again"
                )
            for name, value in point.items():
                check_value(f"loop_curve: {name}", value, float)

    def __setattr__(self, name: str, value: Any) -> None:
        """Transformers' own; what a user means for a budget would change nothing here.

        Raises:
            ConfigError: it is a number of loops.
        """
        if name in LOOPS:
            call = "mean_loops" if name == "mean_loops" else "max_loops"
            raise ConfigError(
                f"config.{name} = {value!r} would change nothing: call "
                f"model.set_compute_budget({call}={value!r}), or for a model that is yet to be "
                "made set the knob in reuse={…}"
            )
        super().__setattr__(name, value)

    def ffn(self) -> FFNConfig:
        """How the FFN is reused."""
        return FFNConfig.from_dict(self.reuse or {})

    def save_pretrained(self, save_directory: Any, *args: Any, **kwargs: Any) -> None:
        """Transformers' own; where `auto_map` names a file of code, with this file."""
        named: dict[str, Any] | None = getattr(self, "auto_map", None)
        if named:
            # Of what was loaded from a hub, names begin with whose code it is: "owner/name--".
            self.auto_map = {
                auto: name.rpartition("--")[2] if isinstance(name, str) else name
                for auto, name in named.items()
            }
            Path(save_directory).mkdir(parents=True, exist_ok=True)
            code = Path(save_directory, f"{MODELLING}.py")
            code.write_text(modelling_source(), encoding="utf-8")
        super().save_pretrained(save_directory, *args, **kwargs)  # type: ignore[misc]

    @classmethod
    def register_for_auto_class(cls, auto_class: str = "AutoConfig") -> None:
        """Nothing: Transformers would copy the one module that this class stands in."""

    @classmethod
    def from_dict(cls, config_dict: dict[str, Any], **kwargs: Any) -> Any:
        """Transformers' own; fields that an older version wrote flat are gathered first."""
        return super().from_dict(_gathered(config_dict), **kwargs)  # type: ignore[misc]


def _refuse_knobs(unknown: Iterable[str]) -> None:
    """Refuse knobs outside of `reuse`: a Transformers config silently keeps what it doesn't know.

    Args:
        unknown: names that are no fields of the config.

    Raises:
        ConfigError: one is a knob, or close to one.
    """
    knobs = {f.name for variant in VARIANTS.values() for f in dataclasses.fields(variant)}
    known = [*knobs, "variant", "tau", "reuse", *FLAT, *OLD_SETTINGS]
    for name in unknown:
        meant = get_close_matches(name, known, 1, 0.85)
        if meant and meant[0] in ("tau", "reuse"):
            raise ConfigError(f"{name} is no field of this config: use {meant[0]}")
        if meant and meant[0] in OLD_SETTINGS - set(FLAT):
            raise ConfigError(f"{name} is no field of this config: call model.set_{meant[0]}")
        if meant:
            knob = FLAT.get(meant[0], meant[0])
            raise ConfigError(
                f"{name} is no field of this config: use reuse={{{knob!r}: …}}, see FFNConfig"
            )


def _gathered(fields: dict[str, Any]) -> dict[str, Any]:
    """A config's fields with the flat ones of an older version under `reuse`."""
    if "ffn_variant" not in fields:
        return fields
    variant = VARIANTS.get(fields["ffn_variant"])
    if variant is None:
        raise ConfigError(f"ffn_variant={fields['ffn_variant']!r} is unknown: mend config.json")
    knobs = {f.name for f in dataclasses.fields(variant)}
    every = {f.name for v in VARIANTS.values() for f in dataclasses.fields(v)} | OLD_SETTINGS
    reuse, kept = {"variant": variant.variant}, {}
    for name, value in fields.items():
        knob = FLAT.get(name, name)
        if knob in knobs:
            reuse[knob] = value
        elif knob not in every and name not in OLD_SETTINGS:
            kept[name] = value
    return kept | {"reuse": reuse}


@cache
def config_class(model_type: str) -> type[Any]:
    """Our config of a family.

    Args:
        model_type: the dense model's.
    """
    family = family_of(model_type)
    module = importlib.import_module(module_name(model_type, family, "configuration"))
    dense: type[PreTrainedConfig] = getattr(module, family.prefix + family.config)
    # A rank that holds some neurons of the FFN can't know the other ranks' experts: with the
    # inherited entries, tensor parallelism would give wrong logits without an error.
    plan = getattr(dense, "base_model_tp_plan", None) or {}
    body = {
        "__module__": "versatileffn.models.family",
        "__doc__": f"`{dense.__name__}` of a model whose FFN is reused, see `ReuseConfig`.",
        "model_type": OURS + model_type,
        "base_model_tp_plan": {k: v for k, v in plan.items() if f".{family.mlp}." not in k},
    }
    return type(f"Versatile{dense.__name__}", (ReuseConfig, dense), body)


def module_name(model_type: str, family: Family, kind: str) -> str:
    """Where Transformers has a family's classes; `kind` is configuration or modeling."""
    folder = family.module or model_type
    return f"transformers.models.{folder}.{kind}_{folder}"


def is_reuse(config: Any) -> bool:
    """Whether a config is one of ours, whatever the variant."""
    return isinstance(config, ReuseConfig)


def reuse_config(dense: PreTrainedConfig, ffn: FFNConfig) -> Any:
    """The config of a dense model, or one of ours, with another reuse.

    Raises:
        CheckpointError: the family isn't supported.
        ConfigError: the reuse doesn't fit the model.
    """
    family_of(dense.model_type)
    kept = dense.to_dict()
    for name in (*OWN_NAMES, "loop_curve"):  # another reuse has another curve
        kept.pop(name, None)
    cls = config_class(dense.model_type.removeprefix(OURS))
    return cls(**(kept | {"reuse": ffn.to_dict()}))


def dense_config(config: Any) -> Any:
    """The dense model's config that one of ours was made from, without anything of the reuse."""
    ours = {*OWN_NAMES, *(f.name for f in dataclasses.fields(ReuseConfig))}
    theirs = next(c for c in type(config).__mro__ if not issubclass(c, ReuseConfig))
    return theirs(**{name: value for name, value in config.to_dict().items() if name not in ours})


def register_configs() -> None:
    """Make all configs known to `AutoConfig`, of the families that this Transformers has."""
    for model_type, family in FAMILIES.items():
        if find_spec(module_name(model_type, family, "configuration").rpartition(".")[0]) is None:
            continue
        AutoConfig.register(OURS + model_type, config_class(model_type), exist_ok=True)
