"""Adaptive wide-and-deep reuse of feed-forward networks (VersatileFFN, arXiv 2512.14531).

Importing this package registers its models with Transformers' Auto classes.
"""

from versatileffn.signals import end_while_importing, is_command_line

if is_command_line():  # what follows takes seconds
    end_while_importing()

from versatileffn.ffn.config import FFNConfig
from versatileffn.ffn.plan import ReusePlan
from versatileffn.ffn.versatile import VersatileFFN
from versatileffn.models.llama import VersatileLlamaConfig, VersatileLlamaForCausalLM
from versatileffn.upcycle import upcycle

__all__ = [
    "FFNConfig",
    "ReusePlan",
    "VersatileFFN",
    "VersatileLlamaConfig",
    "VersatileLlamaForCausalLM",
    "upcycle",
]
