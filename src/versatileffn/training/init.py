"""How a run's model comes to be: initialised from an architecture, loaded, or upcycled."""

import re
import zlib
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedConfig
from transformers import PreTrainedModel as Model

from versatileffn.errors import ConfigError
from versatileffn.ffn.base_config import FFNConfig
from versatileffn.ffn.loop_weights import LowRankLoops
from versatileffn.ffn.registry import CONTROLLERS
from versatileffn.models.checkpoint import first_line, load_checkpoint, read_config
from versatileffn.models.family import is_reuse, model_class, reuse_config
from versatileffn.training.architecture import architecture_config
from versatileffn.training.config import ModelSection
from versatileffn.upcycle import is_dense, upcycle


def truncated_init(model: nn.Module, std: float = 0.02, seed: int = 0) -> None:
    """Draw every matrix of `model` from N(0, std²) truncated at 3·std; biases become 0.

    Norm weights and reuse gains keep what their constructors gave them; loops' own weights and
    controllers of others draw theirs. Each tensor's numbers depend on `seed` and its name only, so
    two variants of one architecture share their common weights.

    Source: arXiv 2512.14531, hyper-parameters (initialisation).

    Args:
        model: changed in place.
        std: standard deviation before truncation (weight units).
        seed: any whole number.
    """
    themselves: set[str] = set()
    with torch.no_grad(), torch.random.fork_rng(devices=[]):
        for name, module in model.named_modules():
            if draws_itself(module):
                torch.manual_seed(seed_of(seed, name))
                module.reset_parameters(std)
                themselves |= {f"{name}.{inner}" for inner, _ in module.named_parameters()}
        for name, parameter in model.named_parameters():
            if name in themselves:
                continue
            if parameter.ndim >= 2:
                parameter.copy_(draw(name, parameter.shape, std, seed))
            elif name.endswith("bias"):
                parameter.zero_()


def draw(name: str, shape: torch.Size, std: float, seed: int) -> Tensor:
    """The values of one matrix, float32; see `truncated_init`."""
    generator = torch.Generator().manual_seed(seed_of(seed, name))
    values = torch.empty(shape, dtype=torch.float32)
    return nn.init.trunc_normal_(values, std=std, a=-3 * std, b=3 * std, generator=generator)


def seed_of(seed: int, name: str) -> int:
    """One checksum of both: a generator looks at 32 bits of its seed only."""
    return zlib.crc32(f"{seed} {name}".encode())


def draws_itself(module: nn.Module) -> Any:
    """Whether a module knows better than the paper how its weights begin."""
    ours = type(module).__module__.startswith("versatileffn.")
    foreign = type(module) in CONTROLLERS.values() and not ours
    return foreign or isinstance(module, LowRankLoops)


def new_model(config: PreTrainedConfig) -> Model:
    """A model of `config` in the current default device and dtype, weights not yet chosen."""
    return model_class(config)(config)


def model_config(
    section: ModelSection, vocab_size: int, eos_token_id: int | None, seq_len: int
) -> PreTrainedConfig:
    """What the model that a run starts from will be; nothing is allocated.

    Args:
        section: where the weights come from.
        vocab_size: tokens in the token folder's vocabulary.
        eos_token_id: its end-of-text token.
        seq_len: window length in tokens.

    Raises:
        ConfigError: the vocabulary or the window length doesn't fit the model, or `model.ffn`
            contradicts the checkpoint's FFN.
        CheckpointError: the checkpoint can't be read, or is of another family.
    """
    ffn = section.ffn
    if section.architecture is not None:
        config = architecture_config(section.architecture, ffn, vocab_size, eos_token_id, seq_len)
        if config.vocab_size < vocab_size:
            raise ConfigError(
                f"model.architecture.vocab_size={config.vocab_size} is smaller than the "
                f"{vocab_size} tokens of data.tokens: raise it, or leave it out"
            )
        _check_length(config, seq_len, "model.architecture")
        return config
    assert section.init_from is not None
    config = read_config(section.init_from)
    _check_vocabulary(config, vocab_size, section.init_from)
    _check_length(config, seq_len, section.init_from)
    if ffn is not None and not is_dense(config):
        _check_same_ffn(config.ffn(), ffn, section.init_from)
    return config if ffn is None else reuse_config(config, ffn)


def build_model(section: ModelSection, config: PreTrainedConfig, seed: int) -> Model:
    """The model that a run starts from, in float32.

    Args:
        section: where the weights come from.
        config: see `model_config`.
        seed: of the new weights.

    Raises:
        ConfigError: the model can't be built.
        CheckpointError: the checkpoint can't be read, or lacks weights.
    """
    if section.architecture is not None:
        try:
            model = new_model(config)
        except (RuntimeError, MemoryError) as error:  # torch's word for too little memory
            raise ConfigError(
                f"model.architecture can't be built ({first_line(error)}): choose smaller sizes"
            ) from None
        truncated_init(model, config.initializer_range, seed)
        return model
    assert section.init_from is not None
    if section.ffn is not None and is_dense(read_config(section.init_from)):
        model, _ = upcycle(section.init_from, section.ffn, seed=seed)
        return model.float()
    return load_checkpoint(model_class(config), section.init_from, config, dtype=torch.float32)


def freeze(model: nn.Module, patterns: Sequence[str]) -> None:
    """Leave the weights alone whose names match one of `patterns`; tied ones go by their first.

    Raises:
        ConfigError: a pattern is no regular expression, or is found in no name.
    """
    for pattern in patterns:
        try:
            found = [p for name, p in model.named_parameters() if re.search(pattern, name)]
        except re.error as error:
            raise ConfigError(
                f"optim.frozen: {pattern!r} is no regular expression ({error}): correct it"
            ) from None
        if not found:
            names = [name for name, _ in model.named_parameters()]
            raise ConfigError(
                f"optim.frozen: {pattern!r} is found in no parameter's name, such as {names[0]}: "
                "correct it, or leave it out"
            )
        for parameter in found:
            parameter.requires_grad_(False)


def set_execution(model: Any, execution: str) -> None:
    """Say how a run's model computes its reused FFNs.

    Raises:
        ConfigError: it has none, and something else than the default is asked for.
    """
    if is_reuse(model.config):
        model.set_execution(execution)
    elif execution != "auto":
        raise ConfigError(
            f"run.execution={execution!r} has no effect on a plain dense model: leave it out, or "
            "give model.ffn"
        )


def _check_vocabulary(config: PreTrainedConfig, vocab_size: int, source: str) -> None:
    spare = config.vocab_size - vocab_size  # padding to a multiple is usual, anything else is not
    if not 0 <= spare <= max(128, config.vocab_size // 100):
        raise ConfigError(
            f"model.init_from={source} has a vocabulary of {config.vocab_size} tokens, data.tokens "
            f"one of {vocab_size}: tokenize the corpus with the checkpoint's own tokenizer"
        )


def _check_length(config: PreTrainedConfig, seq_len: int, where: str) -> None:
    longest = getattr(config, "max_position_embeddings", seq_len)
    if seq_len > longest:
        raise ConfigError(
            f"data.seq_len={seq_len} exceeds max_position_embeddings={longest} of {where}: lower "
            "one or raise the other"
        )


def _check_same_ffn(own: FFNConfig, wanted: FFNConfig, source: str) -> None:
    trained, asked = own.fixed(), wanted.fixed()
    for name in ("variant", *trained):
        if trained[name] != asked[name]:
            raise ConfigError(
                f"model.ffn.{name}={asked[name]!r}, but the checkpoint {source} was trained with "
                f"{trained[name]!r}: drop model.ffn, or start from a dense one"
            )
