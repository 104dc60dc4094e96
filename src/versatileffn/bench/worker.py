"""The measuring process: started by `run.py` in an environment that suits measuring.

`python -m versatileffn.bench.worker RESULTS CASES`, CASES being a JSON file.
"""

import json
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from transformers.utils import logging

from versatileffn.bench import decode_case, layer_cases, model_cases
from versatileffn.bench.layers import MismatchError
from versatileffn.bench.machine import measured_sources
from versatileffn.bench.results import Results
from versatileffn.bench.suite import Case
from versatileffn.bench.timing import Budget
from versatileffn.errors import VersatileFFNError

FUNCTIONS: dict[str, Callable[..., dict[str, Any]]] = {
    "inference": layer_cases.inference,
    "width": layer_cases.width,
    "others": layer_cases.others,
    "training": layer_cases.training,
    "memory": layer_cases.memory,
    "allocator": layer_cases.allocator,
    "decode": decode_case.decode,
    "model": model_cases.model,
}


def measure_cases(results: Results, cases: list[Case]) -> None:
    """Measure cases in order and keep each as soon as it is done.

    Raises:
        MismatchError: two ways to compute one thing disagree.
    """
    settings, source = results.content["settings"], measured_sources()
    torch.set_num_threads(settings["threads"])
    for number, case in enumerate(cases, start=1):
        print(f"[{number:>{len(str(len(cases)))}}/{len(cases)}] {case.name} …", end="", flush=True)
        started = time.perf_counter()
        measure_case = FUNCTIONS[case.kind]
        try:
            found = measure_case(
                budget=Budget(**case.budget), device=settings["device"], **case.settings
            )
        except Exception:
            print(flush=True)  # so that what is said about it begins a line
            raise
        seconds = time.perf_counter() - started
        results.add(case, source, seconds, found)
        print(f" {seconds:.1f} s", flush=True)


def main(results_file: str, cases_file: str) -> int:
    """Measure; the exit code."""
    logging.set_verbosity_error()
    cases = [Case(**case) for case in json.loads(Path(cases_file).read_text(encoding="utf-8"))]
    try:
        measure_cases(Results.read(Path(results_file)), cases)
    except (MismatchError, VersatileFFNError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
