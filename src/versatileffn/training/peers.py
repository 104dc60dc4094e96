"""The other processes of a run: one that dies ends it for all, in a line that says so."""

import re
from collections.abc import Iterator
from contextlib import contextmanager

from torch import distributed

from versatileffn.errors import ResourceError

_LOST = re.compile(
    r"closed by peer|reset by peer|Connection refused|Broken pipe|[Tt]imed out|[Tt]imeout|gloo|NCCL"
)
"""What torch.distributed's backends say; gloo raises a RuntimeError with words alone."""


def is_lost(error: BaseException) -> bool:
    """Whether a failure is for want of another process."""
    alone = not distributed.is_initialized() or distributed.get_world_size() == 1
    return isinstance(error, RuntimeError) and not alone and bool(_LOST.search(str(error)))


@contextmanager
def raising_together() -> Iterator[None]:
    """Where one process of the run lacks something, all raise; else they would wait for it.

    Raises:
        ResourceError: what the first of them raised.
    """
    failed: ResourceError | None = None
    try:
        yield
    except ResourceError as error:
        failed = error
    if distributed.is_initialized():
        every: list[ResourceError | None] = [None] * distributed.get_world_size()
        distributed.all_gather_object(every, failed)
        failed = next((each for each in every if each is not None), None)
    if failed is not None:
        raise failed


@contextmanager
def losing_peers() -> Iterator[None]:
    """Tell that another process is gone, where this one failed for want of it.

    Raises:
        ResourceError: it is.
    """
    try:
        yield
    except RuntimeError as error:
        if not is_lost(error):
            raise
        lines = [line for line in str(error).splitlines() if line.strip()]
        raise ResourceError(
            f"another process of this run ended, or its machine can't be reached ({lines[0][:200]}"
            "): see what it said last; the same command goes on from the newest checkpoint"
        ) from error
