"""A layer as `ffn/naive.py` reads it, sharing its weights, so that fast paths can be held to it."""

from typing import Any

import torch
from torch import Tensor

from versatileffn.ffn.config import Versatile
from versatileffn.ffn.naive import NaiveFFN
from versatileffn.ffn.token_choice import TokenChoiceController
from versatileffn.ffn.view import FFNView
from versatileffn.layer import Reuse


def as_naive(layer: Reuse, view: FFNView) -> NaiveFFN:
    """The same layer for Algorithms 1 and 2; gradients meet in its parameters.

    Args:
        layer: with a controller of ours, and no real experts.
        view: its FFN, of plain linear maps. Its norms are called as they are.
    """
    config, controller = layer.reuse_config, layer.controller
    versatile = isinstance(config, Versatile)
    pairs: list[Any] = [(linear.weight, linear.bias) for linear in view.proj]
    if view.gated and len(pairs) == 1:
        weight, bias = pairs[0]
        halves = (None, None) if bias is None else bias.chunk(2)
        pairs = list(zip(weight.chunk(2), halves, strict=True))
    (gate, gate_bias), (up, up_bias) = pairs if view.gated else [(None, None), *pairs]
    gains = layer.gains
    loop_gains: Tensor | None = None if gains is None else gains.loop_gains
    if loop_gains is not None:
        loop_gains = torch.cat([loop_gains.new_ones(1), loop_gains])
    token_choice = isinstance(controller, TokenChoiceController)
    fusion = getattr(config, "fusion", "depth")
    with_full = gains is not None and (token_choice or fusion != "depth")
    router, head = (getattr(controller, name, None) for name in ("router", "loop_head"))
    down: Any = view.down
    return NaiveFFN(
        norm_D=None,
        own_norm=view.norm,
        up_FD=up,
        down_DF=down.weight,
        gate_FD=gate,
        gate_bias_F=gate_bias,
        up_bias_F=up_bias,
        down_bias_D=down.bias,
        own_post_norm=view.post_norm,
        scale=view.scale,
        residuals=None if view.loop_weights is None else _residuals(view),
        router_ND=None if router is None else router.weight,
        loop_head_LD=None if head is None else head.weight,
        loops=None if versatile else config.loops,
        width_gain=1.0 if gains is None or gains.width_gain is None else gains.width_gain,
        loop_gains_L=loop_gains,
        shared=1.0 if with_full or fusion == "width" else 0.0,
        top_k=getattr(config, "top_k", 1),
        d_expert=config.expert_size(up.shape[0]),
        tau=getattr(controller, "tau", 1.0),
        fusion=fusion,
        soft=getattr(config, "loop_mix", "hard") == "soft",
        token_choice=token_choice,
        normed_controller=getattr(config, "normed_controller", False),
        activation=view.act,
    )


def _residuals(view: FFNView) -> list[list[tuple[Tensor, Tensor]]]:
    """(A, B) of gate (if any), up and down, for each loop after the first."""
    weights: Any = view.loop_weights
    found = []
    for loop in range(weights.reduce[0].shape[0]):
        pairs = [
            (a[loop], b[loop]) for a, b in zip(weights.reduce, weights.expand, strict=True)
        ]  # fmt: skip
        if view.gated and len(view.proj) == 1:
            (a, b), *rest = pairs
            pairs = [*((a, half) for half in b.chunk(2)), *rest]
        found.append(pairs)
    return found
