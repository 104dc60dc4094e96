"""`python measure.py CONFIG.yaml`: a real run's peak of memory, by torch's own allocator.

The whole command runs, `versatileffn train`, while torch's profiler records every allocation and
release of the CPU allocator, kernels' own included. So this knows nothing of how the plan counts.
"""

import json
import sys
from pathlib import Path

import torch
from torch.autograd.profiler import profile


def peak_bytes(profiler: profile) -> int:
    """The most that was allocated at once since the profiler started."""
    result = profiler.kineto_results
    assert result is not None
    events = [event for event in result.events() if event.name() == "[memory]"]
    now = highest = 0
    for event in sorted(events, key=lambda event: event.start_ns()):
        now += event.nbytes()
        highest = max(highest, now)
    return highest


def main(path: str) -> None:
    from versatileffn.training.config import load_config
    from versatileffn.training.run import train

    torch.set_num_threads(1)
    config = load_config(path)
    with profile(profile_memory=True, use_kineto=True) as profiler:
        folder = train(config)
    logged = [json.loads(line) for line in (Path(folder) / "log.jsonl").read_text().splitlines()]
    last = [entry for entry in logged if "loss" in entry][-1]
    loops = [value for key, value in last.items() if key.endswith("/mean_loops")]
    mean_loops = sum(loops) / len(loops) if loops else None
    print(json.dumps({"peak": peak_bytes(profiler), "mean_loops": mean_loops}))


if __name__ == "__main__":
    main(sys.argv[1])
