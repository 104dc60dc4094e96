"""A reuse model and the dense one it is compared with, and the tokens that both read."""

from itertools import chain, islice
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import AutoModelForCausalLM

from versatileffn.analysis.flops import ffn_of
from versatileffn.data.corpus import find_corpus
from versatileffn.errors import ConfigError, DataError
from versatileffn.evaluation.tasks.tokenizer import RequestTokenizer
from versatileffn.ffn.config import Dense
from versatileffn.models.checkpoint import load_checkpoint, quiet_transformers, read_config
from versatileffn.models.family import model_class, reuse_config
from versatileffn.models.tokenizer import load_own_tokenizer
from versatileffn.upcycle import NEW_TENSORS


def read_pair(model: str, dense: str | None) -> tuple[Any, Any]:
    """The configs of a reuse model and of its dense counterpart, see `load_pair`.

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
    if dense is None:
        return config, reuse_config(config, Dense())
    other = read_config(dense)
    if ffn_of(other).variant != "dense":
        raise ConfigError(f"{dense} is a {ffn_of(other).variant} model: give a dense one, or none")
    if other.vocab_size != config.vocab_size:
        raise ConfigError(
            f"{model} has {config.vocab_size} tokens and {dense} {other.vocab_size}: give models "
            "that read the same tokens"
        )
    return config, other


def fitting_length(configs: tuple[Any, Any], length: int | None, new_tokens: int) -> int:
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


def load_pair(
    model: str,
    dense: str | None,
    configs: tuple[Any, Any],
    dtype: torch.dtype,
    device: torch.device | str = "cpu",
) -> dict[str, Any]:
    """Load both, as `reuse` and `dense`.

    Without a checkpoint the dense one is a twin: the reuse model's own weights without what reuse
    adds, so that its FFN runs once, without router, loop predictor, gains or real experts. They are
    copies, so that neither model finds in a cache what the other has read.

    Raises:
        CheckpointError: weights are missing or don't fit.
    """
    reuse = load_checkpoint(AutoModelForCausalLM, model, configs[0], dtype=dtype)
    kind: Any = AutoModelForCausalLM
    shared = None
    if dense is None:
        kind, weights = model_class(configs[1]), reuse.state_dict().items()
        shared = {n: t.clone() for n, t in weights if not any(new in n for new in NEW_TENSORS)}
    other = load_checkpoint(kind, dense or model, configs[1], dtype=dtype, weights=shared)
    return {"reuse": reuse.to(device), "dense": other.to(device)}


def token_ids(
    model: str, vocab_size: int, text: str | None, shape: tuple[int, int]
) -> tuple[Tensor, str]:
    """Tokens of real text, which decide how many loops a model takes.

    Args:
        model: the checkpoint, for its tokenizer; where it has none, tokens are random ones.
        vocab_size: of the model.
        text: a corpus as `versatileffn tokenize` takes it; None is Python's own sources.
        shape: sequences, and tokens of each.

    Returns:
        The ids, the text over and over where it is short, and what they are.

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
        return torch.randint(vocab_size, shape), f"random tokens ({error})"
    documents = chain.from_iterable(corpus.pieces())
    with quiet_transformers():
        tokens = chain.from_iterable(map(RequestTokenizer(tokenizer).stream, documents))
        found = list(islice(tokens, count))
    if not found or max(found) >= vocab_size:
        raise DataError(f"{corpus.source} gives no tokens that {model} knows: give another --text")
    return torch.from_numpy(np.resize(np.array(found), shape)), corpus.source
