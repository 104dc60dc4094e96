"""Adaptive wide-and-deep reuse of feed-forward networks (VersatileFFN, arXiv 2512.14531).

Importing this package registers its models with Transformers' Auto classes.
"""

from typing import Any

from versatileffn.signals import end_while_importing, is_command_line, wants_words_only

if is_command_line():  # what follows takes seconds
    end_while_importing()

if not wants_words_only():
    from versatileffn.adapters import lora_config
    from versatileffn.budget import compute_budget
    from versatileffn.ffn.base_config import FFNConfig
    from versatileffn.ffn.config import Dense, KLoop, MoE, Versatile
    from versatileffn.ffn.plan import ReusePlan
    from versatileffn.ffn.registry import register_controller
    from versatileffn.layer import VersatileFFN
    from versatileffn.models.config import register_configs
    from versatileffn.models.family import VersatileLlamaConfig, VersatileLlamaForCausalLM
    from versatileffn.to_dense import to_dense
    from versatileffn.upcycle import upcycle

    register_configs()


def __getattr__(name: str) -> Any:
    """What is needed beside a Trainer only; Transformers takes seconds to import what it needs."""
    if name == "AnnealTau":
        from versatileffn.training.anneal_tau import AnnealTau

        return AnnealTau
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


__all__ = [
    "AnnealTau",
    "Dense",
    "FFNConfig",
    "KLoop",
    "MoE",
    "ReusePlan",
    "Versatile",
    "VersatileFFN",
    "VersatileLlamaConfig",
    "VersatileLlamaForCausalLM",
    "compute_budget",
    "lora_config",
    "register_controller",
    "to_dense",
    "upcycle",
]
