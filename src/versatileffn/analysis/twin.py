"""A reuse model and the dense one it is compared with, and the tokens that both read.

Legend: B sequences, T tokens of each.
"""

from itertools import chain
from typing import Any

import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, LlamaConfig

from versatileffn.analysis.flops import ffn_of, parameter_count
from versatileffn.data.corpus import find_corpus
from versatileffn.errors import ConfigError, DataError
from versatileffn.ffn.config import FFNConfig
from versatileffn.memory import check_memory
from versatileffn.models.checkpoint import load_checkpoint, quiet_transformers, read_config
from versatileffn.models.llama import VersatileLlamaConfig, VersatileLlamaForCausalLM
from versatileffn.models.tokenizer import load_own_tokenizer
from versatileffn.upcycle import NEW_TENSORS

CHARACTERS_PER_TOKEN = 16
"""More than any tokenizer's mean: so many characters of text are surely enough."""


def read_pair(model: str, dense: str | None) -> tuple[VersatileLlamaConfig, LlamaConfig]:
    """The configs of a reuse model and of its dense counterpart.

    Args:
        model: a checkpoint with reused FFNs: a folder or hub id.
        dense: a dense checkpoint; None is the twin, `load_pair` says of what it consists.

    Raises:
        CheckpointError: a config can't be read.
        ConfigError: `model` is dense, `dense` isn't, or they have other vocabularies.
    """
    config = read_config(model)
    if ffn_of(config).variant == "dense":
        raise ConfigError(
            f"{model} is a dense model: give one whose FFN is reused (`versatileffn upcycle` makes "
            "it), and the dense one after it"
        )
    assert isinstance(config, VersatileLlamaConfig)
    if dense is None:
        return config, VersatileLlamaConfig.from_ffn(config, FFNConfig(variant="dense"))
    other = read_config(dense)
    if ffn_of(other).variant != "dense":
        raise ConfigError(f"{dense} is a {ffn_of(other).variant} model: give a dense one, or none")
    if other.vocab_size != config.vocab_size:
        raise ConfigError(
            f"{model} has {config.vocab_size} tokens and {dense} {other.vocab_size}: give models "
            "that read the same tokens"
        )
    return config, other


def load_pair(
    model: str,
    dense: str | None,
    configs: tuple[VersatileLlamaConfig, LlamaConfig],
    dtype: torch.dtype,
    device: torch.device,
) -> tuple[Any, Any]:
    """Load both.

    The twin has the reuse model's own weights and lacks what reuse adds: its FFN runs once, without
    router, loop predictor, gains or real experts. Its weights are copies, so that neither model
    finds in a cache what the other has read.

    Raises:
        CheckpointError: weights are missing or don't fit.
    """
    reuse = load_checkpoint(AutoModelForCausalLM, model, configs[0], dtype=dtype)
    if dense is not None:
        other = load_checkpoint(AutoModelForCausalLM, dense, configs[1], dtype=dtype)
    else:
        shared = {
            name: tensor.clone()
            for name, tensor in reuse.state_dict().items()
            if not any(part in name for part in NEW_TENSORS)
        }
        other = load_checkpoint(
            VersatileLlamaForCausalLM, model, configs[1], dtype=dtype, weights=shared
        )
    return reuse.to(device), other.to(device)


def token_ids(
    model: str, config: LlamaConfig, text: str | None, shape: tuple[int, int], seed: int
) -> tuple[Tensor, str]:
    """Tokens of real text, which decide how many loops a model takes.

    Args:
        model: the checkpoint, for its tokenizer.
        config: its config.
        text: a corpus as `versatileffn tokenize` takes it; None is Python's own sources.
        shape: B and T.
        seed: of random tokens, which are taken where there is no tokenizer.

    Returns:
        ids_BT, the text over and over where it is short, and what they are.

    Raises:
        DataError: the text can't be read, or has no tokens that the model knows.
    """
    count = shape[0] * shape[1]
    corpus = find_corpus(text)
    try:
        tokenizer = load_own_tokenizer(model)
    except DataError as error:
        if text is not None:
            raise
        generator = torch.Generator().manual_seed(seed)
        ids_BT = torch.randint(config.vocab_size, shape, generator=generator)
        return ids_BT, f"random tokens ({error})"
    found: list[int] = []
    with quiet_transformers():
        for document in chain.from_iterable(corpus.pieces()):
            characters = document.text[: CHARACTERS_PER_TOKEN * count]
            found += tokenizer(characters, add_special_tokens=False)["input_ids"]
            if len(found) >= count:
                break
    if not found or max(found) >= config.vocab_size:
        raise DataError(f"{corpus.source} gives no tokens that {model} knows: give another --text")
    ids = torch.tensor(found).repeat(-(-count // len(found)))[:count]
    return ids.view(shape), corpus.source


def least_bytes(
    configs: tuple[LlamaConfig, LlamaConfig], tokens: int, training: bool, bf16: bool
) -> int:
    """Memory that comparing two models needs in any case.

    Both models' weights; in training one model's gradients, and for each token the activations of a
    dense layer (about 10·D + 4·F values) and float32 logits with their gradient; else the FFN's
    hidden activations in one layer, and the cache of keys and values in all.

    Args:
        tokens: of all sequences.
        training: training steps, whose weights are float32.
        bf16: activations in bfloat16, and outside training weights.
    """
    config = max(configs, key=parameter_count)
    D, F, num_layers = config.hidden_size, config.intermediate_size, config.num_hidden_layers
    size = 2 if bf16 else 4
    parameters = [parameter_count(c) for c in configs]
    if training:
        activations = num_layers * (10 * D + 4 * F) * size + 3 * 4 * config.vocab_size
        return 4 * (sum(parameters) + max(parameters)) + tokens * activations
    heads = config.num_key_value_heads or config.num_attention_heads
    cache = 2 * num_layers * heads * (config.head_dim or D // config.num_attention_heads)
    return size * (sum(parameters) + tokens * (cache + 2 * F))


def check_fits(
    configs: tuple[LlamaConfig, LlamaConfig],
    tokens: int,
    training: bool,
    bf16: bool,
    device: torch.device,
) -> None:
    """Refuse what can't fit before anything is allocated; see `least_bytes`.

    Raises:
        ResourceError: with the memory needed and available.
    """
    needed = least_bytes(configs, tokens, training, bf16)
    what = f"{'training on' if training else 'reading'} {tokens:,} tokens"
    check_memory(needed, what, "choose a smaller --batch or --length, or other --work", device)


def fitting_length(
    configs: tuple[LlamaConfig, LlamaConfig], length: int | None, new_tokens: int
) -> int:
    """The tokens of a sequence: as asked for, or 512, or as many as both models take.

    Raises:
        ConfigError: they take fewer.
    """
    longest = min(config.max_position_embeddings for config in configs)
    if (length or 1) + new_tokens > longest:
        raise ConfigError(
            f"{length or 1:,} tokens and {new_tokens:,} new ones are more than the {longest:,} "
            "that the models take: choose a smaller --length or --new-tokens"
        )
    return length or min(512, longest - new_tokens)
