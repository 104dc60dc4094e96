"""The model and the tokenizer to evaluate: a folder, a hub id, or a GGUF file."""

import contextlib
import hashlib
import io
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

from versatileffn.data.tokenizers import find_tokenizer
from versatileffn.errors import CheckpointError, DataError
from versatileffn.models.checkpoint import first_line, load_checkpoint, quiet_transformers

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
    if source.endswith(".gguf"):
        model = _load_gguf(Path(source).expanduser(), dtype)
    else:
        model = load_checkpoint(AutoModelForCausalLM, source, _config(source), dtype=dtype)
    words = _own_tokenizer(source) if tokenizer is None else find_tokenizer(tokenizer)
    return Subject(source, model.to(device).eval(), words)


def _config(source: str) -> Any:
    folder = Path(source).expanduser()
    if (folder / "model" / "config.json").is_file() and not (folder / "config.json").is_file():
        raise CheckpointError(f"{source} is a run folder: give {source}/model, its checkpoint")
    if folder.is_file():
        raise CheckpointError(f"{source} is a file: give the folder that holds config.json")
    try:
        with quiet_transformers():
            return AutoConfig.from_pretrained(source)
    except Exception as error:  # a damaged config.json makes many types of them
        raise CheckpointError(
            f"{source} is no readable checkpoint ({first_line(error)}): give a folder with "
            "config.json and weights, a hub id, or a .gguf file"
        ) from None


def _load_gguf(path: Path, dtype: torch.dtype) -> Any:
    if not path.is_file():
        raise CheckpointError(f"{path}: there is no such file")
    try:
        with quiet_transformers(), contextlib.redirect_stderr(io.StringIO()):  # a bar of its own
            return AutoModelForCausalLM.from_pretrained(
                path.parent, gguf_file=path.name, dtype=dtype
            )
    except ImportError:
        raise CheckpointError(f"{path}: reading GGUF needs a package: pip install gguf") from None
    except Exception as error:  # the readers raise whatever the format's parser does
        raise CheckpointError(
            f"{path} can't be read as GGUF ({first_line(error)}): the file may be damaged, or of "
            "a family that Transformers doesn't convert"
        ) from None


def _own_tokenizer(source: str) -> Any:
    path = Path(source).expanduser()
    try:
        with quiet_transformers():
            if source.endswith(".gguf"):
                return AutoTokenizer.from_pretrained(path.parent, gguf_file=path.name)
            return AutoTokenizer.from_pretrained(source)
    except Exception as error:  # loaders fail in many ways
        raise DataError(
            f"{source} has no tokenizer that loads ({first_line(error)}): name the one it was "
            "trained with, --tokenizer"
        ) from None


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
    """A config without what says only where it lay and which library wrote it."""
    volatile = {"_name_or_path", "transformers_version", "architectures", "dtype", "use_cache"}
    return {name: value for name, value in config.items() if name not in volatile}
