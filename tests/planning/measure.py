"""A real run's peak of memory, by torch's own allocator; `measure.py CONFIG` under torchrun.

All of `train` runs while torch's profiler records every allocation and release of the CPU's
allocator, kernels' own included. So this knows nothing of how the plan counts.
"""

import gc
import json
import os
import sys
from dataclasses import dataclass
from pathlib import Path

from torch.autograd.profiler import profile

from versatileffn.training.config import TrainConfig
from versatileffn.training.run import train


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
    gc.collect()  # what is released meanwhile should be this run's own
    with profile(profile_memory=True, use_kineto=True) as profiler:
        folder = train(config)
    entries = map(json.loads, (Path(folder) / "log.jsonl").read_text().splitlines())
    last = [entry for entry in entries if "loss" in entry][-1]
    loops = [value for key, value in last.items() if key.endswith("/mean_loops")]
    return Measured(_peak(profiler), sum(loops) / len(loops) if loops else None)


def _peak(profiler: profile) -> int:
    result = profiler.kineto_results
    assert result is not None
    events = [event for event in result.events() if event.name() == "[memory]"]
    now = highest = 0
    for event in sorted(events, key=lambda event: event.start_ns()):
        now += event.nbytes()
        highest = max(highest, now)
    return highest


if __name__ == "__main__":
    from versatileffn.training.config import load_config

    found = measure(load_config(sys.argv[1]))
    if os.environ.get("RANK", "0") == "0":
        print(json.dumps({"peak": found.peak, "mean_loops": found.mean_loops}))
