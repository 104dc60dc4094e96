"""The paper's three model sizes, by name."""

from transformers import LlamaConfig

LAYERS = 15
HEADS = 16  # the paper gives it for 354M only
VOCABULARY = 50_304  # tokens: 50,280, padded
CONTEXT = 4096  # tokens

WIDTHS = {"354m": 1024, "720m": 1536, "1.21b": 2048}
"""D of each size; F = 4·D. Source: the paper's hyper-parameters."""


def preset(name: str) -> LlamaConfig:
    """The dense base of one of the paper's sizes, as `configs/paper/` trains it.

    Args:
        name: a key of `WIDTHS`.
    """
    d_model = WIDTHS[name]
    return LlamaConfig(
        hidden_size=d_model,
        intermediate_size=4 * d_model,
        num_hidden_layers=LAYERS,
        num_attention_heads=HEADS,
        vocab_size=VOCABULARY,
        max_position_embeddings=CONTEXT,
        rms_norm_eps=1e-6,
        tie_word_embeddings=False,
        bos_token_id=None,
        eos_token_id=None,
    )
