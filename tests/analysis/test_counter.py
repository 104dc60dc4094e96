"""The counter of executed FLOPs sees what torch's own doesn't."""

import pytest
import torch
import torch.nn.functional as F
from torch.utils.flop_counter import FlopCounterMode

from versatileffn.analysis.executed import FlopCounter

query = torch.randn(1, 2, 4, 8)
ATTENTION = 2 * 2 * 2 * 4 * 4 * 8
long_a, long_b = torch.randn(3, 16), torch.randn(2, 16, 32)
ends = torch.tensor([1, 3], dtype=torch.int32)
MISSED = {
    "grouped": (lambda: F.grouped_mm(long_a, long_b, offs=ends), 2 * 3 * 16 * 32),
    "attention on a CPU": (lambda: F.scaled_dot_product_attention(query, query, query), ATTENTION),
}


@pytest.mark.parametrize(("run", "flops"), MISSED.values(), ids=MISSED.keys())
def test_what_torchs_own_counter_misses_is_counted(run, flops):
    """When its own learns one of these, ours may forget it."""
    with torch.no_grad(), FlopCounter() as counter:
        run()
    assert counter.total == flops
    with torch.no_grad(), FlopCounterMode(display=False) as torchs:
        run()
    assert torchs.get_total_flops() != flops


def test_attentions_backward_pass_is_counted():
    """Five products of the same size: one again, and two for each of the two forward."""
    leaf = query.clone().requires_grad_()
    with FlopCounter() as counter:
        F.scaled_dot_product_attention(leaf, query, query).sum().backward()
    assert counter.total == ATTENTION + 5 * ATTENTION // 2
