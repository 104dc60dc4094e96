"""FFNConfig: what the records of all variants have in common: checked, read and written.

A knob belongs to the variants that have a use for it; elsewhere it is an error. How a plan is
carried out and where the temperature stands are settings of a running model, not part of this.
"""

import dataclasses
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, Self, get_type_hints

from versatileffn.errors import ConfigError
from versatileffn.ffn.values import Indices, check_value, suggestion

MOST_LOOPS = 2**10
"""Of any count of loops: each costs a feed-forward network, and a forward pass has to end."""
VARIANTS: dict[str, type["FFNConfig"]] = {}
"""By name, as `ffn/config.py` has them; what several have in common has none."""
ADJUSTABLE = {"adjustable": True}
"""Metadata of the knobs that may change after training: weights of any shape and use serve all."""


@dataclass(frozen=True)
class FFNConfig:
    """How one feed-forward network is used: `Versatile`, `KLoop`, `MoE` or `Dense`.

    Raises:
        ConfigError: a knob is another variant's or nobody's, or a value is unknown or out of range.
    """

    variant: ClassVar[str]

    def __init_subclass__(cls) -> None:
        if "variant" in vars(cls):
            VARIANTS[cls.variant] = cls

    def __new__(cls, *values: Any, **knobs: Any) -> Self:
        """Say whose an unknown knob is, before the record's own constructor sees it."""
        if not hasattr(cls, "variant"):
            raise ConfigError("FFNConfig is no variant: take Versatile, KLoop, MoE or Dense")
        known = cls.names()
        for name in knobs:
            owners = [variant for variant, c in VARIANTS.items() if name in c.names()]
            if name not in known and owners:
                raise ConfigError(
                    f"{name} is a knob of {' and '.join(owners)}, not of {cls.variant} "
                    f"({', '.join(known) or 'no knobs'}): leave it out"
                )
            if name not in known:
                raise ConfigError(f"unknown key {name!r}; {suggestion(name, known)}")
        return super().__new__(cls)

    def __post_init__(self) -> None:
        hints = get_type_hints(type(self))
        for knob in dataclasses.fields(self):
            value: Any = getattr(self, knob.name)
            check_value(knob.name, value, hints[knob.name])
            if isinstance(value, list | tuple):  # as plain data has it, and YAML
                object.__setattr__(self, knob.name, tuple(sorted(value)))
            if knob.name in ("max_loops", "num_loops") and value > MOST_LOOPS:
                raise ConfigError(f"{knob.name}={value:,} must be at most {MOST_LOOPS:,}: lower it")
        start: float = getattr(self, "gain_init", 0.0)
        if start and getattr(self, "reuse_gains", None) == "fixed":
            raise ConfigError(
                f"gain_init={start} is where learned gains start, and reuse_gains='fixed' has "
                "none: set reuse_gains='learned', or leave it out"
            )
        scale: float = getattr(self, "loop_scale", 1.0)
        if not scale > 0:
            raise ConfigError(f"loop_scale={scale!r} must be positive")
        if scale != 1 and getattr(self, "reuse_gains", None) == "learned":
            raise ConfigError(
                f"loop_scale={scale!r} fixes what reuse_gains='learned' learns: leave one of them "
                "out; gain_init says where learned gains start"
            )
        if scale != 1 and getattr(self, "fusion", None) == "width":
            raise ConfigError(
                f"loop_scale={scale!r} scales loops, and fusion='width' runs none: leave it out"
            )

    @classmethod
    def from_dict(cls, fields: Mapping[str, Any]) -> "FFNConfig":
        """The record that `to_dict` wrote, or that a person wrote in YAML.

        Args:
            fields: `variant` (by default `versatile`) and knobs of that variant.

        Raises:
            ConfigError: the variant is unknown, or the knob is another variant's or nobody's.
        """
        if not isinstance(fields, Mapping):
            raise ConfigError(f"{fields!r} must be a mapping of a variant and its knobs")
        knobs = dict(fields)
        variant = knobs.pop("variant", "versatile")
        check_value("variant", variant, Literal[tuple(VARIANTS)])
        return VARIANTS[variant](**{str(name): value for name, value in knobs.items()})

    @classmethod
    def names(cls) -> list[str]:
        """Of the knobs."""
        return [knob.name for knob in dataclasses.fields(cls)]

    def to_dict(self) -> dict[str, Any]:
        """The variant and its knobs as plain data."""
        knobs = dataclasses.asdict(self).items()
        plain = {name: list(v) if isinstance(v, tuple) else v for name, v in knobs}
        return {"variant": self.variant, **plain}

    def at_layer(self, index: int) -> "FFNConfig":
        """How the FFN of one layer is used: as this says, or as the dense model does.

        Args:
            index: of the layer, from 0.
        """
        chosen: Indices = getattr(self, "reuse_layers", None)
        return self if chosen is None or index in chosen else VARIANTS["dense"]()

    def check_layers(self, num_layers: int) -> None:
        """See that a model of `num_layers` layers has those that are to be reused.

        Raises:
            ConfigError: it doesn't.
        """
        chosen: Indices = getattr(self, "reuse_layers", None)
        if chosen is not None and chosen[-1] >= num_layers:
            raise ConfigError(
                f"reuse_layers={list(chosen)} names layer {chosen[-1]} of a model with {num_layers}"
                f" layers, 0 to {num_layers - 1}: leave it out"
            )

    def fixed(self) -> dict[str, Any]:
        """What weights are trained for, by name; every other knob may change afterwards."""
        adjustable = {f.name for f in dataclasses.fields(self) if f.metadata.get("adjustable")}
        return {name: value for name, value in self.to_dict().items() if name not in adjustable}

    def replace(self, **changes: Any) -> Self:
        """A copy with some knobs changed, checked again."""
        return type(self)(**{**dataclasses.asdict(self), **changes})

    @property
    def loops(self) -> int:
        """L, the most often that a token passes through the FFN."""
        return 1

    @property
    def has_router(self) -> bool:
        """Whether tokens select experts, virtual or real."""
        return False

    @property
    def starts_exactly(self) -> bool:
        """Whether a freshly converted model computes the dense model's function."""
        start: float = getattr(self, "gain_init", 0.0)
        return getattr(self, "reuse_gains", "learned") == "learned" and start == 0

    def expert_size(self, d_hidden: int) -> int:
        """Hidden neurons of one expert (f) beside or in an FFN of `d_hidden` neurons; 0 without.

        Raises:
            ConfigError: there is no neuron for an expert, or the virtual experts don't fit.
        """
        return 0

    def unused_neurons(self, d_hidden: int) -> int:
        """Hidden neurons that no virtual expert owns. Source: Eq. 4-5."""
        return 0

    def warn_unused_neurons(self, d_hidden: int) -> None:
        """Say so where there are some."""
        unused = self.unused_neurons(d_hidden)
        if unused:
            warnings.warn(
                f"{unused} of {d_hidden} hidden neurons belong to no expert: they serve the depth "
                "pathway only. d_hidden = num_experts·d_expert would use them all.",
                stacklevel=3,
            )
