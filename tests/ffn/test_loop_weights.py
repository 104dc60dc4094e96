"""Weights that differ by loop: a low-rank residual, nothing in loop 1 and nothing at the start."""

import pytest
import torch

from versatileffn.ffn.config import KLoop, Versatile
from versatileffn.layer import VersatileFFN


@pytest.mark.parametrize("gated", [True, False])
def test_each_loop_has_its_own_weights(gated):
    torch.manual_seed(0)
    layer = VersatileFFN(16, 32, KLoop(3, loop_rank=2), gated=gated).double()
    hidden = torch.randn(5, 16, dtype=torch.float64)
    shared = VersatileFFN(16, 32, KLoop(3), gated=gated).double()
    shared.load_state_dict(layer.state_dict(), strict=False)
    assert torch.equal(layer(hidden).hidden, shared(hidden).hidden)  # B starts at 0
    for expand in layer.loop_weights.expand:
        torch.nn.init.normal_(expand, std=0.3)

    state = hidden
    for loop in range(3):
        mlp = VersatileFFN(16, 32, KLoop(1), gated=gated).double().mlp
        mlp.load_state_dict(layer.mlp.state_dict())
        names = ["gate_proj"] * gated + ["up_proj", "down_proj"]
        for index, name in enumerate(names if loop else ()):
            a = layer.loop_weights.reduce[index][loop - 1]
            b = layer.loop_weights.expand[index][loop - 1]
            getattr(mlp, name).weight.data += b @ a
        state = state + mlp(layer.norm(state))
    torch.testing.assert_close(layer(hidden).hidden, state)
    assert not torch.allclose(layer(hidden).hidden, shared(hidden).hidden)


def test_one_loop_has_none():
    assert VersatileFFN(16, 32, Versatile(max_loops=1, loop_rank=2)).loop_weights is None
