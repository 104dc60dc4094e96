"""What a training step keeps for its backward pass, and the most memory it ever holds."""

import re
from pathlib import Path
from typing import Any

import torch

from benchmarks.layers import set_up
from benchmarks.processes import in_new_process
from versatileffn.analysis.saved import Saved, saved_for_backward


def memory(executors: list[str], peak: bool, **settings: Any) -> dict[str, Any]:
    """Saved values and bytes a token, and the peak of a training step, for each executor."""
    found = {}
    for name in executors:
        saved, peak_bytes = saved_per_token(name, **settings), None
        if peak:
            threads = torch.get_num_threads()
            peak_bytes = in_new_process(
                "memory", "peak_here", executor=name, threads=threads, **settings
            )
        found[name] = {
            "saved_values_per_token": saved.values,
            "saved_bytes_per_token": saved.bytes,
            "peak_bytes": peak_bytes,
        }
    return {"memory": found}


def saved_per_token(executor: str, tokens: int, **settings: Any) -> Saved:
    """What an executor saves for each further token.

    The difference between `tokens` and twice as many leaves out what doesn't grow with them: casts
    of weights under autocast, for one.
    """
    totals = []
    for count in (tokens, 2 * tokens):
        setup = set_up(tokens=count, training=True, **settings)
        plan = setup.plan(executor)
        with setup.autocast():
            run = lambda setup=setup, plan=plan: setup.run(executor, plan)  # noqa: E731
            totals.append(saved_for_backward(run, setup.layer.parameters()))
    return Saved(*((b - a) / tokens for a, b in zip(*totals, strict=True)))


def peak_here(executor: str, threads: int, **settings: Any) -> int | None:
    """The most memory that this process holds in a training step beyond what was there before.

    Returns:
        Bytes; None where the system doesn't tell.
    """
    torch.set_num_threads(threads)
    set_up(**{**settings, "tokens": 4}, training=True).train_step(executor)  # loads kernels
    setup = set_up(**settings, training=True)
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
