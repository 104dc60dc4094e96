"""What a training step keeps for its backward pass, and the most memory it ever holds.

Legend: M tokens, D d_model, F d_hidden.
"""

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import torch

from versatileffn.analysis.saved import Saved, saved_for_backward
from versatileffn.bench.layers import Setup, set_up
from versatileffn.bench.machine import worker_environment


def saved_per_token(executor: str, tokens: int, **settings: Any) -> Saved:
    """What an executor saves for each further token.

    The difference between M and 2·M tokens leaves out what doesn't grow with them: casts of
    weights under autocast, for one.

    Args:
        executor: see `Setup.run`.
        tokens: M.
        settings: further arguments of `set_up`.
    """
    small, large = (
        _saved(set_up(tokens=count, training=True, **settings), executor)
        for count in (tokens, 2 * tokens)
    )
    return Saved(*((b - a) / tokens for a, b in zip(small, large, strict=True)))


def _saved(setup: Setup, executor: str) -> Saved:
    plan = setup.plan(executor)
    with setup.autocast():
        return saved_for_backward(lambda: setup.run(executor, plan), setup.layer.parameters())


def peak_bytes(executor: str, threads: int, **settings: Any) -> int | None:
    """The most memory that a training step holds beyond what was there before, in a new process.

    The C library's allocator is left at its defaults, under which freed blocks go back.

    Args:
        executor: see `Setup.run`.
        threads: of torch.
        settings: arguments of `set_up`.

    Returns:
        Bytes; None where the system doesn't tell.
    """
    request = json.dumps({"executor": executor, "threads": threads, **settings})
    finished = subprocess.run(
        [sys.executable, "-m", "versatileffn.bench.memory", request],
        env=worker_environment("default", threads),
        check=True,
        stdout=subprocess.PIPE,
        text=True,
    )
    answer: int | None = json.loads(finished.stdout.splitlines()[-1])
    return answer


def _peak_here(executor: str, threads: int, **settings: Any) -> int | None:
    torch.set_num_threads(threads)
    set_up(**{**settings, "tokens": 4}, training=True).train_step(executor)  # loads kernels
    setup = set_up(**settings, training=True)
    if setup.hidden_MD.is_cuda:
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        setup.train_step(executor)
        torch.cuda.synchronize()
        return torch.cuda.max_memory_allocated() - before
    try:
        Path("/proc/self/clear_refs").write_text("5")  # sets the peak back to what is held now
    except OSError:
        return None
    before = _resident("VmRSS")
    setup.train_step(executor)
    return _resident("VmHWM") - before


def _resident(field: str) -> int:
    """One size of this process, in bytes."""
    status = Path("/proc/self/status").read_text(encoding="utf-8")
    found = re.search(rf"{field}:\s+(\d+) kB", status)
    assert found is not None
    return int(found[1]) * 1024


if __name__ == "__main__":
    print(json.dumps(_peak_here(**json.loads(sys.argv[1]))))
