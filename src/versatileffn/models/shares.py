"""Tensors on disk in shares: each process writes, and reads, what it holds.

By torch's distributed checkpointing in its safetensors form, so that nothing in a checkpoint is
unpickled, and any number of processes, one without a process group too, reads what any other
number has written.
"""

import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from torch import Tensor, nn
from torch.distributed import checkpoint as dcp
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.hf_storage import HuggingFaceStorageReader as Reader
from torch.distributed.checkpoint.hf_storage import HuggingFaceStorageWriter as Writer

WEIGHTS = "weights"
"""Folder in a checkpoint in shares."""


def weights_of(model: nn.Module) -> dict[str, Tensor]:
    """What a checkpoint keeps of a model, tied weights once; the tensors are the model's own."""
    stored = model.state_dict()
    buffers = {name: buffer for name, buffer in model.named_buffers() if name in stored}
    return {name: weight.detach() for name, weight in model.named_parameters()} | buffers


def save_shares(tensors: Mapping[str, Tensor], folder: Path) -> None:
    """Write this process's shares; all processes call this, into the same folder."""
    folder.mkdir(parents=True, exist_ok=True)
    writer = Writer(str(folder), save_distributed=True)
    with _plainly():
        dcp.save(dict(tensors), storage_writer=writer)


def load_shares(tensors: Mapping[str, Tensor], folder: Path) -> None:
    """Read into tensors of this process; all processes call this.

    Args:
        tensors: by name; each is filled in place.
        folder: what `save_shares` wrote, or a checkpoint of Transformers in safetensors.

    Raises:
        KeyError: a name isn't there.
        ValueError: one is there with another shape, or not whole.
    """
    reader = Reader(str(folder))
    stored = reader.read_metadata().state_dict_metadata
    for name, tensor in tensors.items():
        if name not in stored:
            raise KeyError(f"{name} isn't there")
        there: Any = stored[name]
        found = tuple(there.size)
        if found != tuple(tensor.shape):
            raise ValueError(f"{name} has the shape {found}, not {tuple(tensor.shape)}")
        held = sum(chunk.sizes.numel() for chunk in there.chunks)
        if held != there.size.numel():  # of which the reader would say nothing
            raise ValueError(
                f"{held:,} of the {there.size.numel():,} numbers of {name} are there: a share is "
                "missing, or there twice"
            )
    with _plainly():
        dcp.load(dict(tensors), storage_reader=reader)


def stored_in(folder: Path) -> dict[str, tuple[int, ...]]:
    """Names and shapes of the floating-point tensors in a folder's safetensors files.

    Nothing where there are none, or one can't be read.
    """
    try:
        stored = Reader(str(folder)).read_metadata().state_dict_metadata
    except (OSError, SafetensorError, ValueError, KeyError):
        return {}
    return {
        name: tuple(found.size)  # type: ignore[union-attr]
        for name, found in stored.items()
        if found.properties.dtype.is_floating_point  # type: ignore[union-attr]
    }


def read_shares(folder: Path) -> dict[str, Tensor]:
    """Everything that `save_shares` wrote into a folder, whole, in main memory."""
    stored = Reader(str(folder)).read_metadata().state_dict_metadata
    tensors = {
        name: torch.empty(found.size, dtype=found.properties.dtype)  # type: ignore[union-attr]
        for name, found in stored.items()
    }
    load_shares(tensors, folder)
    return tensors


def shares_in(checkpoint: str | Path) -> Path | None:
    """The folder of a checkpoint's weights where they are in shares; else None."""
    folder = Path(checkpoint).expanduser() / WEIGHTS
    return folder if any(folder.glob("shard-*.safetensors")) else None


@contextmanager
def _plainly() -> Iterator[None]:
    """One process is meant, where there is but one; what failed is raised, not that it did."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "torch.distributed is disabled", UserWarning)
        try:
            yield
        except CheckpointException as error:  # no Exception, so nobody would look at it
            raise next(iter(error.failures.values()))[0] from None
