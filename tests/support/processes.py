"""Processes of a test that form one group of torch.distributed."""

import os
from pathlib import Path

import torch
import torch.distributed as dist

PROCESSES = 2


def join(rank: int, folder: Path) -> None:
    """Become one of the group's processes; they meet in a file in `folder`."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo", f"file://{folder}/init", rank=rank, world_size=PROCESSES)


def leave() -> None:
    """End this process when all have come so far, without its destructors.

    PyTorch's (of DDP and of gloo) wait for a thread, holding the lock that this thread may need.
    """
    dist.barrier()
    os._exit(0)
