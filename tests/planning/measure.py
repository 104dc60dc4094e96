"""A real run's peak of memory, by torch's own allocator; `measure.py CONFIG` under torchrun.

All of `train` runs while torch's allocator on the CPU counts what it holds, kernels' own included.
So this knows nothing of how the plan counts.

The count is read from the profiler's records, and isn't their sum: the profiler sees one thread,
and what gloo works on is often let go by a thread of gloo's, so a sum holds it to the end.
"""

import ctypes
import gc
import json
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch
from torch._C._profiler import _EventType
from torch.autograd.profiler import profile
from torch.profiler._utils import traverse_dfs

from versatileffn.training.config import TrainConfig
from versatileffn.training.run import train

COUNTS = "FLAGS_caffe2_report_cpu_memory_usage"
"""torch's switch for counting what any thread takes and gives back; else only those profiled."""


@dataclass(frozen=True)
class Measured:
    """What a run took.

    Args:
        peak: bytes.
        mean_loops: of its last step's tokens, over all layers; None where they don't choose.
    """

    peak: int
    mean_loops: float | None


def measure(config: TrainConfig) -> Measured:
    """Train, and see the most that was allocated at once."""
    with recorded() as profiler:
        folder = train(config)
    entries = map(json.loads, (Path(folder) / "log.jsonl").read_text().splitlines())
    last = [entry for entry in entries if "loss" in entry][-1]
    loops = [value for key, value in last.items() if key.endswith("/mean_loops")]
    return Measured(peak(profiler), sum(loops) / len(loops) if loops else None)


@contextmanager
def recorded() -> Iterator[profile]:
    """Record this thread's allocations, while the allocator counts those of all threads."""
    counts = ctypes.c_bool.in_dll(ctypes.CDLL(torch._C.__file__), COUNTS)
    gc.collect()  # what is released meanwhile should be this run's own
    counts.value = True
    try:
        with profile(profile_memory=True, use_kineto=True) as profiler:
            yield profiler
    finally:
        counts.value = False


def peak(profiler: profile) -> int:
    """The most bytes that were held at once, without those from before."""
    result = profiler.kineto_results
    assert result is not None
    events = traverse_dfs(result.experimental_event_tree())
    events = [event for event in events if event.tag == _EventType.Allocation]
    first = min(events, key=lambda event: event.start_time_ns).extra_fields
    before = first.total_allocated - first.alloc_size
    return max(event.extra_fields.total_allocated for event in events) - before


if __name__ == "__main__":
    from versatileffn.training.config import load_config

    found = measure(load_config(sys.argv[1]))
    if os.environ.get("RANK", "0") == "0":
        print(json.dumps({"peak": found.peak, "mean_loops": found.mean_loops}))
