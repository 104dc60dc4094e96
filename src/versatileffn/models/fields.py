"""The reuse's fields in a Transformers config, whatever the family."""

from collections.abc import Iterable
from dataclasses import dataclass, fields
from difflib import get_close_matches
from typing import Any

from versatileffn.errors import ConfigError
from versatileffn.ffn.config import FFNConfig

RENAMED = {"variant": "ffn_variant", "top_k": "num_experts_per_tok"}
"""Fields of FFNConfig that carry another name in a Transformers config."""


@dataclass(kw_only=True)
class ReuseFields:
    """Mixin that adds `FFNConfig` to a Transformers config, flat, so that JSON carries it.

    Names follow Transformers' MoE configs where those exist. The meaning of each field is in
    `FFNConfig`; `output_router_logits` is Transformers'.
    """

    ffn_variant: str = "versatile"
    num_experts: int = 8
    num_experts_per_tok: int = 2
    d_expert: int | None = None
    max_loops: int = 4
    num_loops: int = 2
    fusion: str = "difficulty"
    loop_mix: str = "hard"
    reuse_gains: str = "fixed"
    normed_controller: bool = False
    router_aux_loss_coef: float = 1e-5
    tau: float = 5.0
    execution: str = "auto"
    output_router_logits: bool = False

    def ffn(self) -> FFNConfig:
        """The reuse as an `FFNConfig`.

        Raises:
            ConfigError: a field is unknown or out of range.
        """
        names = [field.name for field in fields(FFNConfig)]
        return FFNConfig(**{name: getattr(self, RENAMED.get(name, name)) for name in names})


def reuse_fields(config: FFNConfig) -> dict[str, Any]:
    """An `FFNConfig` under the names of a Transformers config."""
    return {RENAMED.get(f.name, f.name): getattr(config, f.name) for f in fields(config)}


def check_names(unknown: Iterable[str]) -> None:
    """Refuse misspelt reuse fields: a Transformers config silently keeps what it doesn't know.

    Args:
        unknown: names that are no fields of the config.

    Raises:
        ConfigError: one is a name of `FFNConfig` or close to a field of `ReuseFields`.
    """
    known = [field.name for field in fields(ReuseFields)]
    for name in unknown:
        meant = [RENAMED[name]] if name in RENAMED else get_close_matches(name, known, 1, 0.85)
        if meant:
            raise ConfigError(f"{name} is no field of this config: use {meant[0]}")
