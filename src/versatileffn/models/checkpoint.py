"""Reading checkpoints of supported families, strictly: every weight must be there and fit."""

import io
from collections.abc import Container, Iterator, Mapping
from contextlib import contextmanager, nullcontext, redirect_stderr
from math import isfinite
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import AutoConfig, PreTrainedConfig, PreTrainedModel
from transformers import logging as hf_logging

from versatileffn.errors import CheckpointError, ConfigError, VersatileFFNError
from versatileffn.memory import check_memory, raise_out_of_memory
from versatileffn.models import weights as files
from versatileffn.models.alignment import align
from versatileffn.models.family import family_of
from versatileffn.models.gguf import check_gguf
from versatileffn.models.shares import read_shares, shares_in
from versatileffn.models.source import check_source, first_line, is_gguf, where_to_load
from versatileffn.models.trust import RemoteCodeError, trusts_remote_code, wants_remote_code

MOST_LAYERS = 2**10
"""Of any model: one with more would take hours to build, even without its weights."""
MOST = 2**62
"""Of any whole number in a config; sizes made from larger ones can't even be written down."""
MOST_LABELS = 2**20
"""Transformers makes a name for each label that a config counts."""
THETAS = ("rope_theta", "rope_local_base_freq", "rotary_emb_base")
"""Bases of rotary embeddings, whose powers are taken."""


def read_config(source: str | Path) -> Any:
    """The config of a checkpoint of a supported family, dense or ours.

    Args:
        source: a folder, a hub id, or a .gguf file.

    Raises:
        CheckpointError: it can't be read, or is of another family.
    """
    config = read_any_config(source)
    try:
        family_of(config.model_type)
    except CheckpointError as error:
        raise CheckpointError(f"{source}: {error}") from None
    if config.num_hidden_layers < 1 or getattr(config, "max_position_embeddings", 1) < 1:
        raise CheckpointError(f"{source} has no layers or no positions: mend its config.json")
    return config


def read_any_config(source: str | Path) -> Any:
    """The config of a checkpoint of any family that Transformers knows; see `read_config`."""
    check_source(str(source))
    try:
        where, options = where_to_load(source)
        with quiet_transformers():
            if is_gguf(source):
                check_gguf(Path(source).expanduser())
            else:  # before Transformers makes anything from it
                _check_numbers(PreTrainedConfig.get_config_dict(where, **options)[0], source)
            config = AutoConfig.from_pretrained(
                where, trust_remote_code=trusts_remote_code(), **options
            )
            _check_numbers(config.to_dict(), source)
            return config
    except ConfigError as error:  # a reuse that is none
        raise CheckpointError(f"{source}: {error}") from None
    except VersatileFFNError:
        raise
    except Exception as error:  # a damaged config.json makes many types of them
        raise_out_of_memory(error)
        if wants_remote_code(error):
            raise RemoteCodeError(source) from None
        raise CheckpointError(_unreadable(source, error)) from None


def _check_numbers(config: Mapping[str, Any], source: str | Path) -> None:
    """Refuse numbers with which no model computes anything, wherever they stand in a config.

    Raises:
        CheckpointError: the first of them.
    """
    for name, value in config.items():
        if isinstance(value, Mapping):
            _check_numbers(value, source)
        fault = _fault(name, value)
        if fault:
            raise CheckpointError(f"{source}: {name} in its config {fault}: mend it")


def _fault(name: str, value: Any) -> str | None:
    """What is wrong with one number of a config."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    if isinstance(value, int) and abs(value) > MOST:
        return f"is a number of {value.bit_length()} bits, too large for any size"
    if name.endswith(("eps", "epsilon")) and not (value >= 0 and isfinite(value)):
        return f"is {value}, but must be a positive number"
    if name in THETAS and not (value > 0 and isfinite(value)):
        return f"is {value}, but must be a positive number"
    if name == "num_hidden_layers" and value > MOST_LAYERS:
        return f"is {value:,}, but must be at most {MOST_LAYERS:,}"
    if name == "num_labels" and value > MOST_LABELS:
        return f"is {value:,}, but must be at most {MOST_LABELS:,}"
    return None


def _unreadable(source: str | Path, error: Exception) -> str:
    """Why a config can't be read, and what to do about it."""
    if is_gguf(source) and isinstance(error, ImportError):
        return f"{source}: reading GGUF needs a package: pip install gguf"
    if is_gguf(source):
        return (
            f"{source} can't be read as GGUF ({first_line(error)}): the file may be damaged, or "
            "of a family that Transformers doesn't convert"
        )
    return (
        f"{source} is no readable checkpoint ({first_line(error)}): give a folder with "
        "config.json and weights, a hub id, or a .gguf file"
    )


def load_checkpoint(
    model_class: Any,
    source: str | Path,
    config: PreTrainedConfig,
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
        weights: the checkpoint's tensors by name, where they have been read, and checked, already:
            the model shares them, nothing is copied.

    Returns:
        the model, in evaluation mode.

    Raises:
        CheckpointError: a weight is missing, unknown, of another shape, not stored as
            floating-point numbers, or not finite; or code would have to run that isn't trusted.
        ResourceError: the model doesn't fit into memory.
    """
    bar = redirect_stderr(io.StringIO()) if is_gguf(source) else nullcontext()
    shares = shares_in(source) if weights is None else None
    try:
        where: str | None = None
        options: dict[str, Any] = {"state_dict": weights}
        if weights is None and shares is None:
            where, options = where_to_load(source)
        with quiet_transformers(), bar:
            _check_before(model_class, source, where, options, config, dtype, weights)
            if shares is not None:
                options = {"state_dict": read_shares(shares)}
            model, info = model_class.from_pretrained(
                where,
                **options,
                config=config,
                dtype=dtype,
                trust_remote_code=trusts_remote_code(),
                output_loading_info=True,
                ignore_mismatched_sizes=True,  # reported below, in one line
            )
    except VersatileFFNError:
        raise
    except Exception as error:  # torn files and nonsensical configs make many types of them
        raise_out_of_memory(error)
        if wants_remote_code(error):
            raise RemoteCodeError(source) from None
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
    align(model)
    _check_finite(model, weights or (), source)
    return model.eval()


def _check_before(
    model_class: Any,
    source: str | Path,
    where: str | None,
    options: dict[str, Any],
    config: PreTrainedConfig,
    dtype: torch.dtype | str,
    weights: Mapping[str, Tensor] | None,
) -> None:
    """What can be known from headers and sizes, before anything is allocated."""
    kept = dtype if isinstance(dtype, torch.dtype) else getattr(config, "dtype", None)
    stored: dict[str, str] = {}
    if is_gguf(source):
        check_gguf(Path(source).expanduser())
        kept = torch.float32
    elif where is not None:
        stored = files.stored_as(files.weight_files(where, options))
    model = files.skeleton(config, model_class)
    if getattr(config, "quantization_config", None) is None:
        files.check_stored({name for name, _ in model.named_parameters()}, stored, source)
    # Where nobody says how the weights will be kept, they are taken to be small.
    size = files.SMALLEST_WEIGHT if kept is None else kept.itemsize
    needed = sum(t.numel() * t.dtype.itemsize for t in model.buffers())
    needed += sum(t.numel() * size for n, t in model.named_parameters() if n not in (weights or ()))
    check_memory(needed, f"the model of {source}", "take a smaller one")


def _check_finite(model: PreTrainedModel, known: Container[str], source: str | Path) -> None:
    for name, parameter in model.named_parameters():
        if name in known:
            continue
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
