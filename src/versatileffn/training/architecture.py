"""The architecture of a model from scratch: a family, and the fields of its config."""

import dataclasses
from typing import Annotated, Any, Literal

from pydantic import Field, model_validator
from transformers import AutoConfig, PreTrainedConfig

from versatileffn.errors import ConfigError
from versatileffn.ffn.base_config import FFNConfig
from versatileffn.ffn.values import LARGEST, suggestion
from versatileffn.models.checkpoint import MOST_LAYERS
from versatileffn.models.family import FAMILIES, reuse_config
from versatileffn.training.config_file import Section

Count = Annotated[int, Field(ge=1, le=LARGEST)]


class Architecture(Section):
    """Names are Transformers'; what isn't here stays at the default of the family's config."""

    family: str = "llama"
    """`model_type` of a family, see docs/families.md."""
    hidden_size: Count
    """D, width of the residual stream, in neurons."""
    intermediate_size: Count
    """F, hidden neurons of the FFN."""
    num_hidden_layers: int = Field(ge=1, le=MOST_LAYERS)
    """Layers."""
    num_attention_heads: Count
    """Attention heads; must divide hidden_size."""
    num_key_value_heads: Count | None = None
    """Heads of keys and values; null is as many as attention heads."""
    head_dim: Count | None = None
    """Neurons of one head, an even number; null is hidden_size / heads."""
    hidden_act: Literal["silu", "gelu", "gelu_pytorch_tanh", "relu"] = "silu"
    """Activation of the gated FFN."""
    vocab_size: Count | None = None
    """Rows of the embedding, in tokens; null is the data's vocabulary."""
    max_position_embeddings: Count | None = None
    """Longest position, in tokens; null is data.seq_len."""
    rms_norm_eps: float = Field(1e-6, gt=0, le=1)
    """Added to the mean square in norms."""
    rope_theta: float = Field(10_000.0, ge=1)
    """Base of the rotary wavelengths."""
    initializer_range: float = Field(0.02, gt=0, le=1)
    """Standard deviation of new weights, truncated at three times."""
    attention_dropout: float = Field(0.0, ge=0, lt=1)
    """Share of attention weights dropped in training (0 to 1)."""
    tie_word_embeddings: bool = False
    """One matrix for embedding and output."""
    attention_bias: bool = False
    """Biases in the attention's projections."""
    mlp_bias: bool = False
    """Biases in the FFN."""
    more: dict[str, Any] = Field({})
    """Further fields of the family's config, by their names there."""

    @model_validator(mode="after")
    def _heads_fit(self) -> "Architecture":
        if self.family not in FAMILIES:
            raise ValueError(
                f"unknown family {self.family!r}; {suggestion(self.family, list(FAMILIES))}"
            )
        heads = self.num_attention_heads
        if self.hidden_size % heads:
            raise ValueError(
                f"hidden_size={self.hidden_size} is not a multiple of num_attention_heads={heads}"
            )
        if heads % (self.num_key_value_heads or heads):
            raise ValueError(
                f"num_attention_heads={heads} is not a multiple of "
                f"num_key_value_heads={self.num_key_value_heads}"
            )
        head_dim = self.head_dim or self.hidden_size // heads
        if head_dim % 2:
            raise ValueError(
                f"head_dim={head_dim} (hidden_size / num_attention_heads where it isn't given) "
                "must be even: rotary positions turn pairs of neurons"
            )
        return self


def architecture_config(
    architecture: Architecture,
    ffn: FFNConfig | None,
    vocab_size: int | None = None,
    eos_token_id: int | None = None,
    seq_len: int = 2048,
) -> PreTrainedConfig:
    """The configuration of a model from scratch.

    Args:
        architecture: family and sizes.
        ffn: the FFN; None for a plain dense model.
        vocab_size: tokens in the vocabulary, where `architecture` doesn't say.
        eos_token_id: end-of-text token.
        seq_len: longest position in tokens, where `architecture` doesn't say.

    Raises:
        ConfigError: the family's config has no such field, or the FFN's experts don't fit.
    """
    given = architecture.model_dump(exclude_unset=True, exclude_none=True)
    given |= given.pop("more", {})
    family = given.pop("family", "llama")
    if "rope_theta" in given:
        given["rope_parameters"] = {"rope_type": "default", "rope_theta": given.pop("rope_theta")}
    known = [field.name for field in dataclasses.fields(AutoConfig.for_model(family))]
    for name in given:
        if name not in known:
            raise ConfigError(
                f"model.architecture: {family} has no field {name!r}; {suggestion(name, known)}"
            )
    heads = architecture.num_attention_heads
    ours = {
        "vocab_size": vocab_size,
        "max_position_embeddings": seq_len,
        "num_key_value_heads": heads,
        "head_dim": architecture.hidden_size // heads,
    }
    defaults = {name: value for name, value in ours.items() if name in known and value is not None}
    tokens = {"bos_token_id": None, "eos_token_id": eos_token_id, "pad_token_id": None}
    config = AutoConfig.for_model(family, **(defaults | tokens | given))
    return config if ffn is None else reuse_config(config, ffn)
