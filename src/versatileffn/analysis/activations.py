"""Activation memory, measured: bytes that an FFN keeps for its backward pass, per token.

A real layer runs forward, and every tensor that autograd saves is seen through
`saved_tensors_hooks`. Storages count once however many views of them are saved, and whole, because
a saved view keeps all of its storage alive. Two numbers of tokens are run and their difference
taken, so that weights, and what autocast makes of them, drop out.
"""

from math import ceil, floor

import torch
from torch import Tensor, nn
from transformers import LlamaConfig

from versatileffn.analysis.flops import ffn_of
from versatileffn.analysis.saved import saved_for_backward
from versatileffn.ffn.controller import ReuseController
from versatileffn.ffn.plan import ReusePlan
from versatileffn.models.llama import VersatileLlamaConfig, VersatileLlamaDecoderLayer

TOKENS = (2, 4)


def ffn_activation_bytes(
    config: LlamaConfig, bf16: bool = False, mean_loops: float | None = None
) -> float:
    """Bytes per token that all FFNs of a model keep for the backward pass in training.

    Norm, controller and experts are part of it; attention isn't. The few numbers per token that a
    plan itself holds are not seen where an executor keeps the plan as a whole.

    Args:
        config: a `VersatileLlamaConfig` of any variant, or a plain LlamaConfig (dense). Its
            `execution` chooses what carries out a plan.
        bf16: under bfloat16 autocast, weights in float32.
        mean_loops: E[ℓ̂], on which packed training's memory depends, 1 to L: measured with all
            tokens at the whole numbers around it. None stands for L, the most.

    Returns:
        Bytes per token. It doesn't depend on the weights, nor on how many tokens there are.
    """
    ffn = ffn_of(config)
    mean = ffn.max_loops if mean_loops is None else mean_loops
    below, above = floor(mean), ceil(mean)
    layer = _ffn_layer(config)
    measured = {loops: _per_token(layer, config, loops, bf16) for loops in {below, above}}
    between = measured[below] + (mean - below) * (measured[above] - measured[below])
    return config.num_hidden_layers * between


def _per_token(
    layer: VersatileLlamaDecoderLayer, config: LlamaConfig, loops: int, bf16: bool
) -> float:
    """Bytes that one layer keeps for each token, all of which run `loops` loops."""
    if layer.controller is not None and layer.controller.loop_head is not None:
        prescribe(layer.controller, loops)
    few, many = (saved_bytes(layer, _hidden(config, tokens), bf16) for tokens in TOKENS)
    return (many - few) / (TOKENS[1] - TOKENS[0])


def prescribe(controller: ReuseController, loops: int) -> None:
    """Give every token `loops` loops, by noise that outweighs any logit; the gradients stay."""
    decide = type(controller).forward

    def forward(hidden: Tensor) -> ReusePlan:
        noise = torch.zeros(*hidden.shape[:-1], controller.config.max_loops)
        noise[..., loops - 1] = 1e4
        return decide(controller, hidden, gumbel_noise=noise)

    controller.forward = forward  # type: ignore[method-assign, assignment]


def saved_bytes(layer: VersatileLlamaDecoderLayer, hidden: Tensor, bf16: bool = False) -> float:
    """Bytes that autograd keeps of one application of a layer's FFN, its parameters excepted.

    Args:
        layer: in training mode.
        hidden: [B, T, D], requiring a gradient.
        bf16: under bfloat16 autocast.
    """
    autocast = torch.autocast(hidden.device.type, torch.bfloat16, enabled=bf16)
    with torch.enable_grad(), autocast:
        return saved_for_backward(lambda: layer.apply_ffn(hidden), layer.parameters()).bytes


def _ffn_layer(config: LlamaConfig) -> VersatileLlamaDecoderLayer:
    """One layer without its attention; weights of zero cost the least and change no count."""
    with torch.device("meta"):
        layer = VersatileLlamaDecoderLayer(VersatileLlamaConfig.from_ffn(config, ffn_of(config)), 0)
    layer.self_attn = layer.input_layernorm = nn.Identity()  # type: ignore[assignment]
    layer = layer.to(torch.float32).to_empty(device="cpu")
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter.zero_()
    return layer.train()


def _hidden(config: LlamaConfig, tokens: int) -> Tensor:
    return torch.ones(1, tokens, config.hidden_size, requires_grad=True)
