"""Hold the layer and whole models to this project's goals on a CPU, beside the alternatives.

    python -m benchmarks.cpu                      # about 22 minutes; benchmarks/results/cpu.json
    python -m benchmarks.cpu --only decode/d512   # some cases; repeatable
    python -m benchmarks.cpu --quick --out runs/quick.json   # a minute: does it work?
    python -m benchmarks.cpu --render             # the tables into docs/performance.md; no clock

Results are written after each case, so the same command goes on where it was stopped.
"""

import argparse
import os
import shlex
import sys
import time
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch
from transformers.utils import logging

from benchmarks import layer_cases, machine
from benchmarks.cases import Case, all_cases
from benchmarks.distributions import SHARES
from benchmarks.layers import MismatchError
from benchmarks.model_cases import model
from benchmarks.report import FORMAT, read_results, write_into
from versatileffn.analysis.timing import Budget
from versatileffn.errors import ConfigError, VersatileFFNError
from versatileffn.provenance import source_digest
from versatileffn.workspace.durable import check_file, write_json, writing
from versatileffn.workspace.lock import locked

RESULTS = machine.ROOT / "benchmarks/results/cpu.json"
PAGE = machine.ROOT / "docs/performance.md"
MEASURED = ("ffn", "execution", "models")
"""Rooms of the package whose sources a time depends on."""
FUNCTIONS: dict[str, Callable[..., dict[str, Any]]] = {
    "inference": layer_cases.inference,
    "width": layer_cases.width,
    "training": layer_cases.training,
    "memory": layer_cases.memory,
    "decode": layer_cases.decode,
    "model": model,
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Parse, measure or render; 1 after an error that one line tells."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, default=RESULTS, help="JSON file, continued if there")
    parser.add_argument("--docs", type=Path, default=PAGE, help="page that --render writes into")
    parser.add_argument("--only", action="append", default=[], help="beginning of cases' names")
    cores = os.cpu_count() or 1
    parser.add_argument(
        "--threads", type=int, choices=range(1, cores + 1), default=cores, help="of torch"
    )
    parser.add_argument("--quick", action="store_true", help="tiny sizes")
    parser.add_argument("--overwrite", action="store_true", help="forget results of other settings")
    parser.add_argument("--render", action="store_true", help="only write OUT's tables into DOCS")
    given = parser.parse_args(arguments)
    try:
        if given.render:
            write_into(given.docs, read_results(given.out), given.out)
        else:
            measure_missing(given)
    except (MismatchError, VersatileFFNError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("stopped: run the same command again to continue", file=sys.stderr)
        return 130
    print(f"written into {given.docs if given.render else given.out}")
    return 0


def measure_missing(given: argparse.Namespace) -> None:
    """Measure what a results file lacks; nobody else may write into its folder meanwhile.

    Raises:
        ConfigError: an argument fits nothing, the file isn't one of these or is of other settings,
            or another run is writing there.
        MismatchError: two ways to compute one thing disagree.
    """
    cases = all_cases(given.quick)
    for prefix in given.only:
        if not any(case.name.startswith(prefix) for case in cases):
            raise ConfigError(f"--only {prefix} fits no case: use {', '.join(FUNCTIONS)}")
    wanted = [c for c in cases if not given.only or c.name.startswith(tuple(given.only))]
    torch.set_num_threads(given.threads)
    source = source_digest(MEASURED)
    check_file(given.out)
    with locked(given.out.parent, str(given.out)):
        results = open_results(given)
        missing = [c for c in wanted if not _is_known(results["cases"].get(c.name), c, source)]
        print(f"{len(wanted) - len(missing)} of {len(wanted)} cases were measured before")
        for number, case in enumerate(missing, start=1):
            print(f"[{number}/{len(missing)}] {case.name}", flush=True)
            began = time.perf_counter()
            found = FUNCTIONS[case.kind](budget=Budget(**case.budget), **case.settings)
            results["cases"][case.name] = {
                "inputs": case.inputs(),
                "source_sha256": source,
                "seconds": time.perf_counter() - began,
                "found": found,
            }
            with writing(given.out):
                write_json(given.out, results)


def _is_known(found: dict[str, Any] | None, case: Case, source: str) -> bool:
    if found is None or found["source_sha256"] != source:
        return False
    return all(found["inputs"][key] == value for key, value in case.inputs().items())


def open_results(given: argparse.Namespace) -> dict[str, Any]:
    """The results to continue, or new ones.

    Raises:
        ConfigError: the file holds something else, or results of other settings.
    """
    command = shlex.join(["python", "-m", "benchmarks.cpu", *sys.argv[1:]])
    settings = {
        "device": "cpu",
        "threads": given.threads,
        "quick": given.quick,
        "seed": 0,
        "shares": {name: list(values) for name, values in SHARES.items()},
        "machine": machine.cpu_record(),
        "versions": machine.measured_versions(),
        "allocator": machine.TUNED,
    }
    if not given.out.exists() or given.overwrite:
        created = datetime.now(UTC).isoformat(timespec="seconds")
        return {"format": FORMAT, "commands": [command], "created": created,
                "settings": settings, "cases": {}}  # fmt: skip
    results = read_results(given.out)
    changed = [key for key, value in settings.items() if results["settings"].get(key) != value]
    if changed:
        raise ConfigError(
            f"{given.out} was measured with another {changed[0]}: choose another --out, or pass "
            "--overwrite"
        )
    results["commands"] = list(dict.fromkeys([*results["commands"], command]))
    return results


if __name__ == "__main__":
    if "--render" not in sys.argv:
        machine.be_tuned()
    logging.set_verbosity_error()
    sys.exit(main())
