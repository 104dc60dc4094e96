"""Tiny models of every variant."""

import torch

import versatileffn as vf

SHAPE = {
    "vocab_size": 97,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": 64,
    "bos_token_id": None,
    "eos_token_id": None,
    "pad_token_id": 0,
    "initializer_range": 0.2,
}
VARIANTS = {
    "dense": {"ffn_variant": "dense"},
    "k-loop": {"ffn_variant": "k-loop", "num_loops": 3},
    "k-loop-learned": {"ffn_variant": "k-loop", "num_loops": 3, "reuse_gains": "learned"},
    "moe": {"ffn_variant": "moe"},
    "versatile": {"ffn_variant": "versatile"},
    "versatile-learned": {"ffn_variant": "versatile", "reuse_gains": "learned"},
}


def make_model(seed=0, **settings) -> vf.VersatileLlamaForCausalLM:
    """A model whose learned gains stand off zero, so that they matter."""
    torch.manual_seed(seed)
    model = vf.VersatileLlamaForCausalLM(vf.VersatileLlamaConfig(**(SHAPE | settings)))
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "gain" in name:
                parameter.fill_(0.5)
    return model.eval()


def make_ids(*shape, seed=1) -> torch.Tensor:
    return torch.randint(1, 97, shape, generator=torch.Generator().manual_seed(seed))
