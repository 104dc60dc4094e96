"""Tiny random dense models of every family."""

import importlib

import torch
from transformers import PreTrainedConfig, PreTrainedModel

from support.models import SHAPE
from versatileffn.models.config import module_name
from versatileffn.models.family import family_of, model_class

TYPICAL = ["llama", "granite", "starcoder2", "phi3", "olmo2", "gemma2", "gpt_neox", "cohere2"]
"""One for each kind of row: they are tested in every run."""
COMMON = SHAPE | {"num_key_value_heads": 2, "head_dim": 8}
LATENT = {"num_key_value_heads": 4, "q_lora_rank": 16, "kv_lora_rank": 16, "v_head_dim": 8} | {
    "qk_nope_head_dim": 8, "qk_rope_head_dim": 8,
}  # fmt: skip
OWN = {
    "cohere2": {"logit_scale": 0.3},
    "gemma2": {"query_pre_attn_scalar": 8, "final_logit_softcapping": 5.0},
    "gemma3_text": {"query_pre_attn_scalar": 8},
    "granite": {"residual_multiplier": 0.7, "logits_scaling": 3.0, "embedding_multiplier": 2.0},
    "hyperclovax": {"residual_multiplier": 0.7, "use_post_norm": True},
    "llama4_text": {"intermediate_size_mlp": 64, "moe_layers": []},
    "minicpm3": LATENT,
    "youtu": LATENT,
}
"""What makes a family more than a Llama, or can't be as small by `COMMON` alone."""


def tiny_config(model_type: str, **settings) -> PreTrainedConfig:
    """The dense family's own config."""
    family = family_of(model_type)
    module = importlib.import_module(module_name(model_type, family, "configuration"))
    made: PreTrainedConfig = getattr(module, family.prefix + family.config)(
        **(COMMON | OWN.get(model_type, {}) | settings)
    )
    return made


def tiny_dense(model_type: str, **settings) -> PreTrainedModel:
    """The dense family's own causal language model; no norm is the identity."""
    torch.manual_seed(0)
    config = tiny_config(model_type, **settings)
    model = model_class(config)(config)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.dim() == 1:  # norms and biases start at constants
                parameter.add_(0.2 * torch.randn_like(parameter), alpha=1.0)
            assert parameter.isfinite().all(), name
    return model.eval()
