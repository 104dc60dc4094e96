"""FLOPs of the matrix products that really run, by torch's counter and what it hasn't learned yet.

Our operators tell it what they do, see `versatileffn.execution.flops`.
"""

import torch
from torch.utils.flop_counter import FlopCounterMode, flop_registry

from versatileffn.analysis.executed import grouped_mm_flops

aten = torch.ops.aten


class FlopCounter(FlopCounterMode):
    """Counts while it is entered, forward and backward; 2 FLOPs per multiply-add."""

    def __init__(self) -> None:
        forward = flop_registry[aten._scaled_dot_product_flash_attention]
        backward = flop_registry[aten._scaled_dot_product_flash_attention_backward]
        unknown = {
            aten._grouped_mm: grouped_mm_flops,
            aten._scaled_dot_product_flash_attention_for_cpu: lambda *a, **k: forward(*a),
            aten._scaled_dot_product_flash_attention_for_cpu_backward: lambda *a, **k: backward(*a),
        }
        super().__init__(display=False, custom_mapping=unknown)

    @property
    def total(self) -> int:
        """All FLOPs so far."""
        return self.get_total_flops()
