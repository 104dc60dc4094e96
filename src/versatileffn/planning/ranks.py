"""Many processes imagined by one: a group whose collectives have shapes and move nothing."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, distributed
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import FSDPModule

from versatileffn.training.parallel import ParallelSection
from versatileffn.training.sharding import make_mesh


@contextmanager
def imagined_ranks(count: int, section: ParallelSection) -> Iterator[DeviceMesh]:
    """Be rank 0 of so many inside, which share a model as a configuration says."""
    from torch.testing._internal.distributed.fake_pg import FakeStore

    distributed.init_process_group("fake", store=FakeStore(), rank=0, world_size=count)
    try:
        # It looks at values, so it has to be made outside of any fake mode.
        yield make_mesh(section, torch.device("cpu"), count)
    finally:
        distributed.destroy_process_group()


def all_gather_outputs(model: Any) -> list[Tensor]:
    """The buffers that FSDP2 gathers weights into; they are there once a pass has been made."""
    found = []
    for module in model.modules():
        if isinstance(module, FSDPModule):
            group = module._get_fsdp_state()._fsdp_param_group
            for parameter in () if group is None else group.fsdp_params:
                found += parameter.all_gather_outputs
    return found
