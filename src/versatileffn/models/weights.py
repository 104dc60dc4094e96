"""What a checkpoint's files of weights hold, read from their headers before anything is loaded."""

import json
import os
import warnings
import zipfile
from copy import deepcopy
from pathlib import Path, PurePath
from typing import Any

import torch
from safetensors import safe_open
from torch import nn
from transformers import AutoModelForCausalLM, PreTrainedConfig
from transformers.utils.hub import cached_file

from versatileffn.errors import CheckpointError
from versatileffn.models.trust import trusts_remote_code

WEIGHTS = ("model.safetensors", "pytorch_model.bin")
"""In the order in which Transformers looks for them; each may be split, with an index beside it."""
INDEX = ".index.json"
FLOATING = {"F64", "F32", "F16", "BF16", *map(str, (
    torch.float64, torch.float32, torch.float16, torch.bfloat16
))}  # fmt: skip
"""What weights may be stored as, in safetensors' words and in torch's."""
MASKS = {"BOOL", "U8", "I64", *map(str, (torch.bool, torch.uint8, torch.int64))}
"""What old checkpoints keep masks and positions as; nobody stores weights so."""
SMALLEST_WEIGHT = 2
"""Bytes, where neither the caller nor the config says how the weights will be kept."""


def weight_files(source: str, options: dict[str, Any]) -> list[Path]:
    """The files that hold a checkpoint's weights, downloaded if need be; none where none is known.

    Args:
        source: a folder or a hub id.
        options: of Transformers' `cached_file`, for a hub id.

    Raises:
        CheckpointError: the index is damaged, or names a file that is missing or elsewhere.
    """
    for name in WEIGHTS:
        whole = _find(source, name, options)
        if whole is not None:
            return [whole]
        index = _find(source, name + INDEX, options)
        if index is not None:
            return [_shard(index, shard, source, options) for shard in _shard_names(index)]
    return []


def stored_as(files: list[Path]) -> dict[str, str]:
    """How each tensor is stored, by name, from the files' headers.

    Raises:
        Exception: whatever safetensors or torch say about a damaged file.
    """
    found: dict[str, str] = {}
    for path in files:
        if path.suffix == ".safetensors":
            with safe_open(path, framework="pt") as tensors:
                found |= {key: tensors.get_slice(key).get_dtype() for key in tensors.keys()}  # noqa: SIM118
        else:
            zipped = zipfile.is_zipfile(path)  # only such a file can be read piecewise
            held = torch.load(path, map_location="meta", weights_only=True, mmap=zipped)
            found |= {key: str(tensor.dtype) for key, tensor in held.items()}
    return found


def check_stored(names: set[str], stored: dict[str, str], source: object) -> None:
    """Refuse weights that are stored as something else than floating-point numbers.

    Transformers would convert the numbers as they stand, without the scales they need.

    Args:
        names: of the model's parameters.
        stored: see `stored_as`.
        source: how to call the checkpoint.

    Raises:
        CheckpointError: the first of them.
    """
    for name, kind in sorted(stored.items()):
        if kind not in FLOATING and (name in names or kind not in MASKS):
            raise CheckpointError(
                f"{source}: {name} is stored as {kind.removeprefix('torch.').lower()}, and its "
                "config.json doesn't say how to turn that into weights: give the unquantized "
                "checkpoint"
            )


def skeleton(config: PreTrainedConfig, model_class: Any = AutoModelForCausalLM) -> nn.Module:
    """The model of a config without memory for its weights: names, shapes and sizes."""
    automatic = hasattr(model_class, "from_config")
    options = {"trust_remote_code": trusts_remote_code()} if automatic else {}
    build = model_class.from_config if automatic else model_class
    with torch.device("meta"), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the model that is loaded afterwards says the same
        return build(deepcopy(config), **options)


def parameter_count(config: PreTrainedConfig) -> int:
    """Parameters of the model of a config, tied ones once."""
    return sum(parameter.numel() for parameter in skeleton(config).parameters())


def _find(source: str, name: str, options: dict[str, Any]) -> Path | None:
    folder = Path(source)
    if folder.is_dir():
        return folder / name if os.path.lexists(folder / name) else None
    found = cached_file(
        source,
        name,
        _raise_exceptions_for_missing_entries=False,
        _raise_exceptions_for_connection_errors=False,
        **options,
    )
    return None if found is None else Path(found)


def _shard_names(index: Path) -> list[str]:
    try:
        shards = sorted(set(json.loads(index.read_bytes())["weight_map"].values()))
        assert all(isinstance(shard, str) for shard in shards)
    except (OSError, ValueError, LookupError, TypeError, AttributeError, AssertionError):
        raise CheckpointError(
            f"{index} is no index of weights: copy the checkpoint again"
        ) from None
    return shards


def _shard(index: Path, name: str, source: str, options: dict[str, Any]) -> Path:
    """One file that an index names.

    Raises:
        CheckpointError: it is missing, or lies outside the checkpoint.
    """
    path = PurePath(name)
    if path.is_absolute() or ".." in path.parts:
        raise CheckpointError(
            f"{index} names {name!r}, which lies outside its folder: take the checkpoint from "
            "where you trust it"
        )
    shard = _find(source, name, options)
    if shard is None or not shard.is_file():
        raise CheckpointError(f"{index} names {name}, which is missing: copy the checkpoint again")
    folder, place = index.parent.resolve(), shard.resolve()
    # The Hub's cache keeps contents in one folder and links to them from each snapshot.
    cached = folder.parent.name == "snapshots" and place.parent == folder.parent.parent / "blobs"
    if not (cached or place.is_relative_to(folder)):
        raise CheckpointError(
            f"{shard} is a link that leads out of its folder: put the file itself there"
        )
    return shard
