"""Tiny models of every variant."""

import dataclasses

import torch

import versatileffn as vf
from versatileffn.ffn.base_config import VARIANTS as CLASSES
from versatileffn.ffn.base_config import FFNConfig

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
    "dense": {"variant": "dense"},
    "k-loop": {"variant": "k-loop", "num_loops": 3},
    "k-loop-learned": {"variant": "k-loop", "num_loops": 3, "reuse_gains": "learned"},
    "moe": {"variant": "moe"},
    "versatile": {"variant": "versatile"},
    "versatile-learned": {"variant": "versatile", "reuse_gains": "learned"},
}
KNOBS = {"variant"} | {f.name for cls in CLASSES.values() for f in dataclasses.fields(cls)}


def make_config(**settings) -> vf.VersatileLlamaConfig:
    """A tiny Llama's config: the variant's knobs, and whatever else differs from `SHAPE`."""
    reuse = {name: value for name, value in settings.items() if name in KNOBS}
    rest = {name: value for name, value in settings.items() if name not in KNOBS}
    return vf.VersatileLlamaConfig(**(SHAPE | rest), reuse=FFNConfig.from_dict(reuse).to_dict())


def make_model(seed=0, execution="auto", **settings) -> vf.VersatileLlamaForCausalLM:
    """A model whose learned gains stand off zero, so that they matter."""
    torch.manual_seed(seed)
    model = vf.VersatileLlamaForCausalLM(make_config(**settings))
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "gain" in name:
                parameter.fill_(0.5)
    model.set_execution(execution)
    return model.eval()


def make_ids(*shape, seed=1) -> torch.Tensor:
    return torch.randint(1, 97, shape, generator=torch.Generator().manual_seed(seed))
