"""Parameters and FFN FLOPs per token by formula, for every variant.

Source: arXiv 2512.14531, Table 2; 2 FLOPs per multiply-add. Norms, activations, gates and the
mixing of pathways are not counted, and neither are the router and the loop predictor: the paper
leaves them out too, and `controller_flops_per_token` lists them by themselves. What a real
forward pass executes is measured in `executed.py`, not here.
"""

from typing import Literal

from transformers import LlamaConfig

from versatileffn.errors import ConfigError
from versatileffn.ffn.config import FFNConfig

Accounting = Literal["paper", "ours"]
MATRICES = 3  # gate, up and down projection of a gated FFN


def parameter_count(config: LlamaConfig) -> int:
    """Number of parameters of the whole model; tied embeddings count once.

    Source: Table 2, first number of each pair.

    Args:
        config: a `VersatileLlamaConfig` of any variant, or a plain LlamaConfig (dense).

    Returns:
        The count, equal to the sum of `numel` over the built model's parameters.
    """
    D, F, vocab = config.hidden_size, config.intermediate_size, config.vocab_size
    head_dim = config.head_dim or D // config.num_attention_heads
    query = config.num_attention_heads * head_dim
    key_value = (config.num_key_value_heads or config.num_attention_heads) * head_dim
    attention = 2 * D * query + 2 * D * key_value
    if config.attention_bias:
        attention += query + 2 * key_value + D
    dense_ffn = MATRICES * D * F + (2 * F + D if config.mlp_bias else 0)
    layer = attention + dense_ffn + 2 * D + added_parameters_per_layer(ffn_of(config), D, F)
    embeddings = vocab * D * (1 if config.tie_word_embeddings else 2)
    return embeddings + config.num_hidden_layers * layer + D


def ffn_of(config: LlamaConfig) -> FFNConfig:
    """The FFN that a model's config describes; a plain Llama's is dense."""
    return config.ffn() if hasattr(config, "ffn") else FFNConfig(variant="dense")


def added_parameters_per_layer(ffn: FFNConfig, d_model: int, d_hidden: int) -> int:
    """Parameters that a variant adds to one dense layer.

    Source: Section 3 of the paper (router D·N, loop predictor D·L) and Table 2 (MoE).
    """
    learned = ffn.reuse_gains == "learned"
    if ffn.variant == "moe":
        d_expert = ffn.expert_size(d_hidden)
        return d_model * ffn.num_experts * (1 + MATRICES * d_expert)
    if ffn.variant == "k-loop":
        return ffn.num_loops - 1 if learned else 0
    if ffn.variant == "versatile":
        width = d_model * ffn.num_experts + learned if ffn.uses_width else 0
        depth = d_model * ffn.max_loops + (ffn.max_loops - 1) * learned if ffn.uses_depth else 0
        return width + depth
    return 0


def ffn_flops_per_token(
    config: LlamaConfig,
    mean_loops: float | None = None,
    share_below_max: float | None = None,
    accounting: Accounting = "ours",
) -> float:
    """Matrix-product FLOPs of all FFNs for one token at inference, by formula.

    Source: Table 2, second number of each pair: Base = layers·3·D·F·2; k-Loop = k·Base;
    MoE = Base + layers·K·3·D·f·2. For the reuse layer `paper` is Base·N_mean + (MoE - Base)·P;
    `ours` is Base·E[loops], since the width pathway costs no matrix product of its own
    (its hidden activations are those of loop 1).

    Args:
        config: a `VersatileLlamaConfig` of any variant, or a plain LlamaConfig (dense).
        mean_loops: mean loops per token over all layers (N_mean); versatile with the depth
            pathway only, 1 to `max_loops`.
        share_below_max: share of tokens that run fewer than `max_loops` loops (P), 0 to 1;
            `paper` accounting of the `difficulty` fusion only.
        accounting: `paper` adds the width pathway as if its experts ran; `ours` doesn't.

    Returns:
        FLOPs per token.

    Raises:
        ConfigError: a measured value that the variant needs is missing or out of range.
    """
    if accounting not in ("paper", "ours"):
        raise ConfigError(f"accounting={accounting!r} is unknown: choose 'paper' or 'ours'")
    ffn = ffn_of(config)
    D, F, num_layers = config.hidden_size, config.intermediate_size, config.num_hidden_layers
    base = float(num_layers * MATRICES * D * F * 2)
    experts = float(num_layers * ffn.top_k * MATRICES * D * ffn.expert_size(F) * 2)
    if ffn.variant == "dense":
        return base
    if ffn.variant == "k-loop":
        return base * ffn.num_loops
    if ffn.variant == "moe":
        return base + experts
    loops = _mean_loops(ffn, mean_loops)
    if accounting == "ours":
        return base * loops
    return base * loops + experts * _share_with_width(ffn, share_below_max)


def _mean_loops(ffn: FFNConfig, mean_loops: float | None) -> float:
    if not ffn.uses_depth:
        return 1.0  # the shared expert is the whole FFN, once
    if ffn.loop_mix == "soft":
        return float(ffn.max_loops)  # every loop has a weight, so every loop runs
    if mean_loops is None:
        raise ConfigError(
            "mean_loops is missing: a versatile model's FLOPs depend on the loops that its tokens "
            "take; measure them with `versatileffn.analysis.loops.layer_use`"
        )
    if not 1 <= mean_loops <= ffn.max_loops:
        raise ConfigError(f"mean_loops={mean_loops!r} must lie in 1 to max_loops={ffn.max_loops}")
    return mean_loops


def _share_with_width(ffn: FFNConfig, share_below_max: float | None) -> float:
    if not ffn.uses_width:
        return 0.0
    if ffn.fusion != "difficulty" or ffn.loop_mix == "soft":
        return 1.0  # λ is never exactly zero
    if share_below_max is None or not 0 <= share_below_max <= 1:
        raise ConfigError(
            f"share_below_max={share_below_max!r} must be a share from 0 to 1: the paper counts "
            "the width pathway only for tokens that run fewer than max_loops loops"
        )
    return share_below_max


def controller_flops_per_token(config: LlamaConfig) -> int:
    """FLOPs per token of the routers and loop predictors, which no other count includes.

    The paper leaves them out: at D = 1024, F = 4096 they are 0.1 % of one dense FFN.
    """
    ffn = ffn_of(config)
    if ffn.variant == "moe":
        outputs = ffn.num_experts
    elif ffn.variant == "versatile":
        outputs = ffn.num_experts * ffn.uses_width + ffn.max_loops * ffn.uses_depth
    else:
        outputs = 0
    return 2 * config.num_hidden_layers * config.hidden_size * outputs
