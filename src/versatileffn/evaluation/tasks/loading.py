"""The model and the tokenizer to evaluate: a folder, a hub id, or a GGUF file."""

import hashlib
import json
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from transformers import AutoModelForCausalLM

from versatileffn.data.tokenizers import find_tokenizer
from versatileffn.errors import DataError
from versatileffn.models.checkpoint import load_checkpoint, read_any_config
from versatileffn.models.tokenizer import load_own_tokenizer

DEFAULT_CONTEXT = 2048
"""Tokens; for models whose config names no limit. It is ai2-olmo-eval's own default."""


@dataclass(frozen=True)
class Subject:
    """What is evaluated.

    Args:
        source: what the user called it.
        model: in evaluation mode, on its device, in its precision.
        tokenizer: the one that goes with it.
    """

    source: str
    model: Any
    tokenizer: Any


def load_subject(
    source: str,
    dtype: torch.dtype = torch.float32,
    device: str | torch.device = "cpu",
    tokenizer: str | None = None,
) -> Subject:
    """Load any causal language model of Transformers, or one of ours, with its tokenizer.

    Args:
        source: a folder, a hub id, or a .gguf file.
        dtype: the precision to compute in.
        device: where.
        tokenizer: another tokenizer than the model's: `olmo`, a tokenizer.json, a folder, a hub id.

    Raises:
        CheckpointError: the model can't be loaded.
        DataError: the tokenizer can't be loaded.
    """
    model = load_checkpoint(AutoModelForCausalLM, source, read_any_config(source), dtype=dtype)
    if tokenizer is not None:
        words = find_tokenizer(tokenizer, for_documents=False)
    else:
        try:
            words = load_own_tokenizer(source)
        except DataError as error:
            raise DataError(
                f"{error}: copy the one it was trained with into its folder (`evaluate` takes "
                "another by --tokenizer, too)"
            ) from None
    return Subject(source, model.to(device).eval(), words)


def context_length(model: Any) -> int:
    """How many tokens a model takes; 2048 where its config names no limit."""
    text = model.config.get_text_config()
    length = getattr(text, "max_position_embeddings", None)
    return length if isinstance(length, int) and length > 0 else DEFAULT_CONTEXT


def model_sha256(model: nn.Module) -> str:
    """A digest of a model's class, configuration and weights, as loaded."""
    digest = hashlib.sha256(type(model).__name__.encode())
    config: Any = model.config
    digest.update(json.dumps(_settled(config.to_dict()), sort_keys=True, default=str).encode())
    for name, tensor in sorted(model.state_dict().items()):
        digest.update(f"{name}\0{tensor.dtype}\0{tuple(tensor.shape)}\0".encode())
        flat = tensor.detach().cpu().contiguous().reshape(-1)
        digest.update(flat.view(torch.uint8).numpy())
    return digest.hexdigest()


def _settled(config: dict[str, Any]) -> dict[str, Any]:
    """A config without what changes no result: where it lay, which library wrote it."""
    volatile = {
        "_name_or_path", "transformers_version", "architectures", "dtype", "use_cache",
        "loop_curve",
    }  # fmt: skip
    return {name: value for name, value in config.items() if name not in volatile}
