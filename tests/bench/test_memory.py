import sys

import pytest
import torch

from versatileffn.bench.distributions import SHARES
from versatileffn.bench.memory import peak_bytes, saved_for_backward, saved_per_token

LAYER = {"d_model": 16, "d_hidden": 32, "shares": SHARES["2.5"]}


class Cube(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x * x)
        return x**3

    @staticmethod
    def backward(ctx, grad):
        return 3 * grad * ctx.saved_tensors[0]


def test_storages_count_once_weights_not_at_all_and_custom_functions_too():
    weight, x = torch.ones(4, 4, requires_grad=True), torch.ones(3, 4)

    def run():
        hidden = x @ weight  # saves x: 12 values, and the weight
        view = hidden.view(4, 3)
        return Cube.apply(hidden) + hidden.sin() + view.sin().view(3, 4)  # 12, and hidden's 12 once

    saved = saved_for_backward(run, [weight])
    assert saved.values == 36
    assert saved.bytes == 36 * 4


def test_a_dense_layer_saves_what_its_formula_says():
    """H, H/rms, times the norm's weight; 1/rms; gate, silu(gate), up, and their product."""
    saved = saved_per_token("dense", tokens=8, **LAYER)
    assert saved.values == 3 * 16 + 4 * 32 + 1
    half = saved_per_token("dense", tokens=8, dtype="bfloat16", **LAYER)
    assert half.bytes < saved.bytes


def test_packed_saves_less_than_the_released_schedule():
    packed, straightforward = (
        saved_per_token(name, tokens=16, **LAYER).values for name in ("packed", "straightforward")
    )
    assert 0 < packed < straightforward


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells a process its peak")
def test_the_peak_of_a_step_grows_with_its_tokens():
    """16,384 tokens hold at least their gate and up projections, 2·F float32 values each."""
    peak = peak_bytes("dense", threads=1, tokens=16384, **LAYER)
    if peak is None:
        pytest.skip("this system doesn't let a process reset its peak")
    assert peak > 16384 * 2 * 32 * 4
