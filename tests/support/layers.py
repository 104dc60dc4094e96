"""Small layers, and the same weights as `naive.py` reads them."""

import math

import torch

from versatileffn.ffn import naive
from versatileffn.ffn.versatile import VersatileFFN


def make_layer(
    d_model=16, d_hidden=32, dtype=torch.float64, seed=0, gains_at=None, **settings
) -> VersatileFFN:
    """A layer with weights large enough that every term matters; learned gains set off zero."""
    generator = torch.Generator().manual_seed(seed)
    layer = VersatileFFN(d_model, d_hidden, **settings).to(dtype)
    with torch.no_grad():
        for name, weight in layer.named_parameters():
            weight.copy_(torch.randn(weight.shape, generator=generator).to(dtype) * 0.3)
            if name == "norm.weight":
                weight += 1
            if "gain" in name and gains_at is not None:
                weight.fill_(gains_at)
    return layer


def make_hidden(*shape, dtype=torch.float64, seed=1) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator).to(dtype)


def gumbel(hidden, max_loops, seed=2) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    uniform = torch.rand(*hidden.shape[:-1], max_loops, generator=generator, dtype=torch.float64)
    return -(-uniform.clamp_min(1e-12).log()).log().to(hidden.dtype)


def as_naive(layer: VersatileFFN) -> naive.NaiveFFN:
    """The same layer for `naive.py`, sharing its parameters so that gradients meet in them."""
    config, controller, mlp = layer.config, layer.controller, layer.mlp
    learned = config.reuse_gains == "learned"
    one = layer.norm.weight.new_ones(1)
    gains = None if controller.loop_gains is None else torch.cat([one, controller.loop_gains])
    return naive.NaiveFFN(
        norm_D=layer.norm.weight,
        up_FD=mlp.up_proj.weight,
        down_DF=mlp.down_proj.weight,
        gate_FD=None if mlp.gate_proj is None else mlp.gate_proj.weight,
        gate_bias_F=None if mlp.gate_proj is None else mlp.gate_proj.bias,
        up_bias_F=mlp.up_proj.bias,
        down_bias_D=mlp.down_proj.bias,
        router_ND=None if controller.router is None else controller.router.weight,
        loop_head_LD=None if controller.loop_head is None else controller.loop_head.weight,
        width_gain=1.0 if controller.width_gain is None else controller.width_gain,
        loop_gains_L=gains,
        shared=1.0 if learned or config.fusion == "width" else 0.0,
        top_k=config.top_k,
        d_expert=config.expert_size(mlp.up_proj.weight.shape[0]),
        tau=controller.tau,
        fusion=config.fusion,
        soft=config.loop_mix == "soft",
        normed_controller=config.normed_controller,
        eps=layer.norm.eps,
        activation=mlp.act_fn,
    )


def relative_error(actual: torch.Tensor, expected: torch.Tensor) -> float:
    """Norm of the error over that of the truth; infinite where either isn't finite.

    In `max` a NaN would hide, and a truth that is exactly 0 would make one.
    """
    actual, expected = actual.double().cpu(), expected.double().cpu()
    error, size = (actual - expected).norm().item(), expected.norm().item()
    if not math.isfinite(error):
        return math.inf
    return error / size if size else (math.inf if error else 0.0)
