"""How a run's model comes to be: initialised from an architecture, loaded, or upcycled."""

import zlib

import torch
from torch import nn
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM
from transformers import PreTrainedModel as Model

from versatileffn.errors import ConfigError
from versatileffn.ffn.config import FFNConfig
from versatileffn.models.checkpoint import first_line, load_checkpoint, read_config
from versatileffn.models.llama import VersatileLlamaConfig, VersatileLlamaForCausalLM
from versatileffn.training.architecture import architecture_config
from versatileffn.training.config import ModelSection
from versatileffn.upcycle import upcycle

# What a checkpoint's weights were trained for; the other fields of FFNConfig may change at will.
_FIXED_BY_WEIGHTS = {
    "dense": ("variant",),
    "k-loop": ("variant", "num_loops", "reuse_gains"),
    "moe": ("variant", "num_experts", "d_expert"),
    "versatile": (
        "variant", "num_experts", "d_expert", "max_loops", "fusion", "reuse_gains",
        "normed_controller",
    ),
}  # fmt: skip


def truncated_init(model: nn.Module, std: float = 0.02, seed: int = 0) -> None:
    """Draw every matrix of `model` from N(0, std²) truncated at 3·std; biases become 0.

    Norm weights and reuse gains keep what their constructors gave them. Each tensor's numbers
    depend on `seed` and its name only, so two variants of one architecture share their common
    weights.

    Source: arXiv 2512.14531, hyper-parameters (initialisation).

    Args:
        model: changed in place.
        std: standard deviation before truncation (weight units).
        seed: any whole number.
    """
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.ndim >= 2:
                # One checksum of both: the generator looks at 32 bits of its seed only.
                generator = torch.Generator().manual_seed(zlib.crc32(f"{seed} {name}".encode()))
                values = torch.empty(parameter.shape, dtype=torch.float32)
                nn.init.trunc_normal_(values, std=std, a=-3 * std, b=3 * std, generator=generator)
                parameter.copy_(values)
            elif name.endswith("bias"):
                parameter.zero_()


def new_model(config: LlamaConfig) -> Model:
    """A model of `config` in the current default device and dtype, weights not yet chosen."""
    if isinstance(config, VersatileLlamaConfig):
        return VersatileLlamaForCausalLM(config)
    return LlamaForCausalLM(config)


def model_config(
    section: ModelSection, vocab_size: int, eos_token_id: int | None, seq_len: int
) -> LlamaConfig:
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
    ffn = section.ffn_config()
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
    own = config.ffn() if isinstance(config, VersatileLlamaConfig) else None
    if ffn is not None and own is not None and not _upcycles(own, ffn):
        _check_same_ffn(own, ffn, section.init_from)
    return config if ffn is None else VersatileLlamaConfig.from_ffn(config, ffn)


def _upcycles(own: FFNConfig | None, wanted: FFNConfig) -> bool:
    """Whether a checkpoint with the FFN `own` is converted to become one with the FFN `wanted`."""
    return own is None or (own.variant == "dense" != wanted.variant)


def build_model(section: ModelSection, config: LlamaConfig, seed: int) -> Model:
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
    ffn = section.ffn_config()
    if ffn is not None:
        original = read_config(section.init_from)
        own = original.ffn() if isinstance(original, VersatileLlamaConfig) else None
        if _upcycles(own, ffn):
            model, _ = upcycle(section.init_from, ffn, seed=seed)
            return model.float()
    return load_checkpoint(AutoModelForCausalLM, section.init_from, config, dtype=torch.float32)


def _check_vocabulary(config: LlamaConfig, vocab_size: int, source: str) -> None:
    spare = config.vocab_size - vocab_size  # padding to a multiple is usual, anything else is not
    if not 0 <= spare <= max(128, config.vocab_size // 100):
        raise ConfigError(
            f"model.init_from={source} has a vocabulary of {config.vocab_size} tokens, data.tokens "
            f"one of {vocab_size}: tokenize the corpus with the checkpoint's own tokenizer"
        )


def _check_length(config: LlamaConfig, seq_len: int, where: str) -> None:
    if seq_len > config.max_position_embeddings:
        raise ConfigError(
            f"data.seq_len={seq_len} exceeds max_position_embeddings="
            f"{config.max_position_embeddings} of {where}: lower one or raise the other"
        )


def _check_same_ffn(own: FFNConfig, wanted: FFNConfig, source: str) -> None:
    for name in _FIXED_BY_WEIGHTS[own.variant]:
        if getattr(own, name) != getattr(wanted, name):
            raise ConfigError(
                f"model.ffn.{name}={getattr(wanted, name)!r}, but the checkpoint {source} was "
                f"trained with {getattr(own, name)!r}: drop model.ffn, or start from a dense one"
            )
