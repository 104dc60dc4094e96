"""FSDP2: each process keeps a share of every weight, and gathers one decoder layer at a time.

`fully_shard` is called here, not by accelerate: on CPU ranks accelerate silently falls back to DDP,
and its mixed precision rounds all of a layer's weights to bfloat16, the few that decide as well.
So the path that is tested on CPUs is the one that runs on GPUs, and bfloat16 means what it means in
one process: autocast.
"""

import warnings
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor

from versatileffn.errors import ConfigError
from versatileffn.training.parallel import ParallelSection


def shard(model: Any, section: ParallelSection, device: torch.device, processes: int) -> None:
    """Divide a model's weights among the processes of the default group, in place.

    The unit is the decoder layer, for all processes must gather the same weights at the same time,
    and inside a layer each may loop as often as its tokens want. What is outside of the layers,
    embeddings, head and last norm, is one unit more, gathered once for both passes.

    Args:
        model: a causal model; its weights may be on the meta device, and stay there.
        section: of the configuration.
        device: of this process.
        processes: how many there are, a multiple of `section.replicas`.

    Raises:
        ConfigError: a weight would not be divided.
    """
    shard_over(model, section, make_mesh(section, device, processes))


def make_mesh(section: ParallelSection, device: torch.device, processes: int) -> DeviceMesh:
    """Who shares with whom; arguments as of `shard`."""
    sizes = (section.replicas, processes // section.replicas)
    if section.replicas > 1:
        return init_device_mesh(device.type, sizes, mesh_dim_names=("replicate", "shard"))
    return init_device_mesh(device.type, sizes[1:], mesh_dim_names=("shard",))


def shard_over(model: Any, section: ParallelSection, mesh: DeviceMesh) -> None:
    """`shard` among the processes of a mesh."""
    # Nobody changes what the model returns in place.
    warnings.filterwarnings("ignore", ".*returned a view tensor", UserWarning)
    for layer in model.base_model.layers:
        fully_shard(layer, mesh=mesh, reshard_after_forward=section.reshard_after_forward)
    fully_shard(model, mesh=mesh)
    for name, weight in model.named_parameters():
        if not (isinstance(weight, DTensor) and weight.placements[-1].is_shard()):
            raise ConfigError(
                f"parallel.strategy=fsdp2 can't divide {name}: use ddp, or report this"
            )


def whole(tensor: Tensor) -> Tensor:
    """A tensor with all of its parts; of a divided one, all processes ask at the same time."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def gathered(tensors: Mapping[str, Tensor], keep: bool) -> dict[str, Tensor]:
    """Whole tensors in main memory, gathered one by one; all processes call this.

    Args:
        tensors: by name, in the same order everywhere.
        keep: whether this process wants them; others get none.
    """
    found = {}
    for name, tensor in tensors.items():
        full = whole(tensor)
        if keep:
            found[name] = full.cpu()
    return found


def local_bytes(model: nn.Module) -> int:
    """What this process keeps of a model's weights between steps, in bytes."""
    parts = [w.to_local() if isinstance(w, DTensor) else w for w in model.parameters()]
    return sum(part.numel() * part.element_size() for part in parts)
