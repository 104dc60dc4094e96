"""Processes of a test: ones that hear signals, and ones that form a group of torch.distributed."""

import os
import signal
from pathlib import Path

import torch
import torch.distributed as dist

PROCESSES = 2


def hear_signals() -> None:
    """For `preexec_fn`: what this process ignores, started under nohup say, its child would too."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1):
        signal.signal(number, signal.SIG_DFL)


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
