"""Many processes imagined by one: a group whose collectives have shapes and move nothing."""

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import Tensor, distributed
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import FSDPModule, fully_shard


@contextmanager
def imagined_ranks(count: int) -> Iterator[DeviceMesh]:
    """Be rank 0 of so many inside."""
    from torch.testing._internal.distributed.fake_pg import FakeStore

    distributed.init_process_group("fake", store=FakeStore(), rank=0, world_size=count)
    try:
        yield init_device_mesh("cpu", (count,))  # with values, so outside of any fake mode
    finally:
        distributed.destroy_process_group()


def shard(model: Any, mesh: DeviceMesh) -> None:
    """FSDP2 with the decoder layer as its unit, and one more for what is outside of the layers."""
    # Nobody changes what the model returns in place.
    warnings.filterwarnings("ignore", ".*returned a view tensor", UserWarning)
    for layer in model.base_model.layers:
        fully_shard(layer, mesh=mesh)
    fully_shard(model, mesh=mesh)


def gathered(model: Any) -> list[Tensor]:
    """What FSDP2 gathers weights into; it is there once a pass has been made."""
    found = []
    for module in model.modules():
        if isinstance(module, FSDPModule):
            group = module._get_fsdp_state()._fsdp_param_group
            for parameter in () if group is None else group.fsdp_params:
                found += parameter.all_gather_outputs
    return found
