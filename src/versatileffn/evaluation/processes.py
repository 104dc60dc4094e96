"""Work on a model in several processes: a part for each, where each holds all of the model."""

from collections.abc import Callable
from typing import Any, TypeVar

import torch.distributed as dist
from torch import nn
from torch.distributed.fsdp import FullyShardedDataParallel
from torch.distributed.tensor import DTensor

from versatileffn.errors import VersatileFFNError

Piece = TypeVar("Piece")
Key = TypeVar("Key")
Found = TypeVar("Found")


def divide_work(
    model: nn.Module,
    pieces: list[Piece],
    work: Callable[[list[Piece]], dict[Key, Found]],
    alike: bool = False,
) -> dict[Key, Found]:
    """Do each piece in one process and bring all results to all of them.

    Where the model's weights are divided among the processes, they can only compute together, and
    each does everything; or all do equally many pieces, some of them twice, if these are alike.

    Args:
        model: what the work is done with.
        pieces: all of them, in the same order in every process.
        work: does some pieces; what it finds is the same whoever does it.
        alike: equally many pieces take the model equally many steps.

    Raises:
        VersatileFFNError: the work of any process raised it; then all do, and none waits.
    """
    divided = is_divided(model)
    if not (dist.is_available() and dist.is_initialized()) or (divided and not alike):
        return work(pieces)
    count, rank = dist.get_world_size(), dist.get_rank()
    part = pieces[rank::count]
    if divided and len(pieces) % count:  # the last ones are done by whoever has one less
        part += pieces[: -(-len(pieces) // count) - len(part)]
    mine: tuple[dict[Key, Found], VersatileFFNError | None]
    try:
        mine = work(part), None
    except VersatileFFNError as error:
        mine = {}, error
    gathered: list[Any] = [None] * count
    dist.all_gather_object(gathered, mine)
    for _, raised in gathered:
        if raised is not None:
            raise raised
    return {key: value for found, _ in gathered for key, value in found.items()}


def is_divided(model: nn.Module) -> bool:
    """Whether FSDP, tensor parallelism or DeepSpeed's ZeRO-3 keeps parts of the weights apart."""
    return any(isinstance(module, FullyShardedDataParallel) for module in model.modules()) or any(
        isinstance(weight, DTensor) or hasattr(weight, "ds_id") for weight in model.parameters()
    )
