"""Adaptive wide-and-deep reuse of feed-forward networks (VersatileFFN, arXiv 2512.14531)."""

from versatileffn.ffn.config import FFNConfig
from versatileffn.ffn.plan import ReusePlan
from versatileffn.ffn.versatile import VersatileFFN

__all__ = ["FFNConfig", "ReusePlan", "VersatileFFN"]
