"""Reading checkpoints of supported families, strictly: every weight must be there and fit."""

import io
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext, redirect_stderr
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import AutoConfig, AutoTokenizer, LlamaConfig, PreTrainedModel
from transformers import logging as hf_logging

from versatileffn.errors import CheckpointError, DataError
from versatileffn.models.hub import hub_options
from versatileffn.models.llama import VersatileLlamaConfig

FAMILIES = ("llama", VersatileLlamaConfig.model_type)
GGUF = ".gguf"


def read_config(source: str | Path) -> LlamaConfig:
    """The config of a checkpoint of a supported family, dense or ours.

    Args:
        source: a folder, a hub id, or a .gguf file.

    Raises:
        CheckpointError: it can't be read, or is of another family.
    """
    config: LlamaConfig = read_any_config(source)
    if config.model_type not in FAMILIES:
        raise CheckpointError(
            f"{source} is of the family {config.model_type!r}, which isn't supported: "
            "give a checkpoint of the family 'llama'"
        )
    if config.num_hidden_layers < 1 or config.max_position_embeddings < 1:
        raise CheckpointError(f"{source} has no layers or no positions: mend its config.json")
    return config


def read_any_config(source: str | Path) -> Any:
    """The config of a checkpoint of any family that Transformers knows; see `read_config`."""
    _check_path(str(source))
    try:
        where, options = _where(source)
        with quiet_transformers():
            return AutoConfig.from_pretrained(where, **options)
    except Exception as error:  # a damaged config.json makes many types of them
        raise CheckpointError(_unreadable(source, error)) from None


def _unreadable(source: str | Path, error: Exception) -> str:
    """Why a config can't be read, and what to do about it."""
    is_gguf = _is_gguf(source)
    if is_gguf and isinstance(error, ImportError):
        return f"{source}: reading GGUF needs a package: pip install gguf"
    if is_gguf:
        return (
            f"{source} can't be read as GGUF ({first_line(error)}): the file may be damaged, or "
            "of a family that Transformers doesn't convert"
        )
    return (
        f"{source} is no readable checkpoint ({first_line(error)}): give a folder with "
        "config.json and weights, a hub id, or a .gguf file"
    )


def load_own_tokenizer(source: str | Path) -> Any:
    """The tokenizer that lies with a checkpoint.

    Args:
        source: a folder, a hub id, or a .gguf file.

    Raises:
        DataError: there is none, or it doesn't load.
    """
    try:
        where, options = _where(source)
        with quiet_transformers():
            return AutoTokenizer.from_pretrained(where, **options)
    except Exception as error:  # loaders fail in many ways
        raise DataError(f"{source} has no tokenizer that loads ({first_line(error)})") from None


def _is_gguf(source: str | Path) -> bool:
    return str(source).lower().endswith(GGUF)


def _where(source: str | Path) -> tuple[str, dict[str, Any]]:
    """How Transformers' loaders are told of a checkpoint: a GGUF file is named by two things."""
    path = Path(source).expanduser()
    if _is_gguf(source):
        return str(path.parent), {"gguf_file": path.name}
    return str(source), {} if path.is_dir() else hub_options(str(source))


def _check_path(source: str) -> None:
    """Say what is wrong with a path before a hub client takes it for an id."""
    if not source:
        raise CheckpointError("no checkpoint was named: give a folder, a hub id, or a .gguf file")
    folder = Path(source).expanduser()
    try:
        exists, is_folder = os.path.lexists(folder), folder.is_dir()
        has_model = is_folder and (folder / "model" / "config.json").is_file()
        has_config = is_folder and (folder / "config.json").is_file()
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{source[:80]!r} is no path and no hub id ({error})") from None
    if is_folder and has_model and not has_config:
        raise CheckpointError(f"{source} is a run folder: give {source}/model, its checkpoint")
    if _is_gguf(source):
        if not folder.is_file():
            raise CheckpointError(f"{source}: there is no such file")
        return
    if exists and not is_folder:
        raise CheckpointError(f"{source} is a file: give the folder that holds config.json")
    looks_like_path = source.startswith((".", "~", os.sep)) or source.rstrip("/").count("/") > 1
    if not exists and (looks_like_path or source.endswith("/")):
        raise CheckpointError(f"{source} is no readable checkpoint: there is no such folder")


def load_checkpoint(
    model_class: Any,
    source: str | Path,
    config: LlamaConfig,
    allowed_missing: tuple[str, ...] = (),
    dtype: torch.dtype | str = "auto",
    weights: Mapping[str, Tensor] | None = None,
) -> Any:
    """Load a model whose every weight is there, fits and is finite.

    Args:
        model_class: what has `from_pretrained`.
        source: a folder, a hub id, or a .gguf file.
        config: the config to load it with.
        allowed_missing: parts of the names of tensors that may be missing, and are initialized.
        dtype: of the loaded model; `auto` keeps the checkpoint's.
        weights: the checkpoint's tensors by name, where they have been read already.

    Returns:
        the model, in evaluation mode.

    Raises:
        CheckpointError: a weight is missing, unknown, of another shape, or not a finite number.
    """
    bar = redirect_stderr(io.StringIO()) if _is_gguf(source) else nullcontext()
    try:
        where: str | None
        where, options = (None, {"state_dict": weights}) if weights is not None else _where(source)
        with quiet_transformers(), bar:
            model, info = model_class.from_pretrained(
                where,
                **options,
                config=config,
                dtype=dtype,
                output_loading_info=True,
                ignore_mismatched_sizes=True,  # reported below, in one line
            )
    except Exception as error:  # torn files and nonsensical configs make many types of them
        raise CheckpointError(
            f"the weights of {source} can't be read ({first_line(error)}): "
            "the checkpoint may be incomplete or its config.json wrong; copy it again"
        ) from None
    for mismatch in sorted(info["mismatched_keys"])[:1]:
        name, found, expected = mismatch
        raise CheckpointError(
            f"{source}: {name} has the shape {tuple(found)} where config.json expects "
            f"{tuple(expected)}: its config.json and weights don't belong together"
        )
    missing = [k for k in info["missing_keys"] if not any(part in k for part in allowed_missing)]
    if missing:
        raise CheckpointError(
            f"{source} lacks {len(missing)} weights, {sorted(missing)[0]} among them: if they are "
            "tied, set tie_word_embeddings in its config.json; otherwise it is incomplete"
        )
    unexpected = sorted(info["unexpected_keys"])
    if unexpected:
        raise CheckpointError(
            f"{source} has {len(unexpected)} weights its config doesn't know, {unexpected[0]} "
            "among them: its config.json and weights don't belong together"
        )
    _check_finite(model, source)
    return model.eval()


def _check_finite(model: PreTrainedModel, source: str | Path) -> None:
    for name, parameter in model.named_parameters():
        if not parameter.is_floating_point():
            raise CheckpointError(
                f"{source}: {name} holds {parameter.dtype}, not floating-point numbers: "
                "give the unquantized checkpoint"
            )
        if not parameter.isfinite().all():
            raise CheckpointError(
                f"{source}: {name} holds NaN or infinity: the checkpoint is damaged or diverged"
            )


@contextmanager
def quiet_transformers() -> Iterator[None]:
    """Loading is checked by us and reported in one line, so the library needn't comment on it."""
    level = hf_logging.get_verbosity()
    hf_logging.set_verbosity_error()
    try:
        with without_progress_bars():
            yield
    finally:
        hf_logging.set_verbosity(level)


@contextmanager
def without_progress_bars() -> Iterator[None]:
    """Our own lines are the progress; a bar for each file that is read or written buries them."""
    shown = hf_logging.is_progress_bar_enabled()
    hf_logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            hf_logging.enable_progress_bar()


def first_line(error: BaseException) -> str:
    """The first line of an error's message, for one-line reports."""
    lines = str(error).strip().splitlines()
    return lines[0].rstrip(".:") if lines else type(error).__name__
