"""Hold the layer and whole models to this project's goals, beside the alternatives.

    python -m benchmarks                      # about 22 minutes; benchmarks/results/cpu.json
    python -m benchmarks --only decode/d512   # some cases; repeatable
    python -m benchmarks --quick --out runs/quick.json   # a minute: does it work?
    python -m benchmarks --render             # the tables into docs/performance.md; no clock
    python -m benchmarks --device cuda        # the Triton kernels; benchmarks/results/cuda.json
    python -m benchmarks --device interpreter   # the same code path, tiny, without a GPU

Results are written after each case, so the same command goes on where it was stopped.
"""

import argparse
import os
import platform
import shlex
import sys
import time
import traceback
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

if "interpreter" in sys.argv:
    os.environ["TRITON_INTERPRET"] = "1"  # before Triton is imported for the first time

import torch
from transformers.utils import logging

from benchmarks.cases import FUNCTIONS, Case, all_cases
from benchmarks.distributions import SHARES
from benchmarks.report import FORMAT, read_results, write_into
from versatileffn.errors import ConfigError, VersatileFFNError
from versatileffn.provenance import machine, source_digest, versions
from versatileffn.workspace.durable import check_file, write_json, writing
from versatileffn.workspace.lock import locked

ROOT = Path(__file__).resolve().parents[1]
PAGE = ROOT / "docs/performance.md"
MEASURED = ("ffn", "execution", "models")
"""Rooms of the package whose sources a time depends on."""
TUNED = {"MALLOC_MMAP_MAX_": "0", "MALLOC_TRIM_THRESHOLD_": "-1"}
"""glibc: large blocks come from the heap, and the heap is never given back.

By default glibc asks the kernel for every large block anew, and the kernel clears each of its pages
on first touch: an elementwise step over 16 MB then takes several times as long, on all sides and
with a spread that hides what is compared. Other C libraries ignore these variables."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Parse, measure or render; 1 after an error that one line tells, or where a case failed."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    cores = os.cpu_count() or 1
    parser.add_argument("--device", choices=("cpu", "cuda", "interpreter"), default="cpu")
    parser.add_argument("--out", type=Path, help="JSON file, continued if there")
    parser.add_argument("--docs", type=Path, default=PAGE, help="page that --render writes into")
    parser.add_argument("--only", action="append", default=[], help="beginning of cases' names")
    parser.add_argument(
        "--threads", type=int, choices=range(1, cores + 1), default=cores, help="of torch"
    )
    parser.add_argument("--quick", action="store_true", help="tiny sizes")
    parser.add_argument("--overwrite", action="store_true", help="forget results of other settings")
    parser.add_argument("--render", action="store_true", help="only write OUT's tables into DOCS")
    given = parser.parse_args(arguments)
    given.quick |= given.device == "interpreter"
    given.out = given.out or ROOT / f"benchmarks/results/{given.device}.json"
    try:
        if given.render:
            write_into(given.docs, read_results(given.out), given.out)
        elif failed := measure_missing(given):
            print(f"error: not measured: {', '.join(failed)}", file=sys.stderr)
            return 1
    except VersatileFFNError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("stopped: run the same command again to continue", file=sys.stderr)
        return 130
    print(f"written into {given.docs if given.render else given.out}")
    return 0


def measure_missing(given: argparse.Namespace) -> list[str]:
    """Measure what a results file lacks; nobody else may write into its folder meanwhile.

    Returns:
        Names of the cases that failed; the others go on.

    Raises:
        ConfigError: an argument fits nothing, the file isn't one of these or is of other settings,
            or another run is writing there.
    """
    if given.device == "cuda" and not torch.cuda.is_available():
        raise ConfigError("there is no CUDA device here: try --device interpreter")
    cases = all_cases(given.device, given.quick)
    for prefix in given.only:
        if not any(case.name.startswith(prefix) for case in cases):
            raise ConfigError(f"--only {prefix} fits no case: use {', '.join(FUNCTIONS)}")
    wanted = [c for c in cases if not given.only or c.name.startswith(tuple(given.only))]
    torch.set_num_threads(given.threads)
    source = source_digest(MEASURED)
    failed = []
    check_file(given.out)
    with locked(given.out.parent, str(given.out)):
        results = open_results(given)
        missing = [c for c in wanted if not _is_known(results["cases"].get(c.name), c, source)]
        print(f"{len(wanted) - len(missing)} of {len(wanted)} cases were measured before")
        for number, case in enumerate(missing, start=1):
            print(f"[{number}/{len(missing)}] {case.name}", flush=True)
            began = time.perf_counter()
            try:
                found = case.measure()
            except Exception:  # a mismatch, or a kernel that doesn't run here
                traceback.print_exc()
                failed.append(case.name)
                continue
            results["cases"][case.name] = {
                "inputs": case.inputs(),
                "source_sha256": source,
                "seconds": time.perf_counter() - began,
                "found": found,
            }
            with writing(given.out):
                write_json(given.out, results)
    return failed


def _is_known(found: dict[str, Any] | None, case: Case, source: str) -> bool:
    if found is None or found["source_sha256"] != source:
        return False
    return all(found["inputs"][key] == value for key, value in case.inputs().items())


def open_results(given: argparse.Namespace) -> dict[str, Any]:
    """The results to continue, or new ones.

    Raises:
        ConfigError: the file holds something else, or results of other settings.
    """
    command = shlex.join(["python", "-m", "benchmarks", *sys.argv[1:]])
    here = machine(accelerator=given.device == "cuda")
    settings = {
        "device": given.device,
        "threads": given.threads,
        "quick": given.quick,
        "seed": 0,
        "shares": {name: list(values) for name, values in SHARES.items()},
        "machine": {"name": here["name"], "cores": here["cores"]},
        "versions": versions("torch", "transformers", "numpy")
        | {"libc": "-".join(platform.libc_ver())},
        "allocator": TUNED,
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
    if "--render" not in sys.argv and any(os.environ.get(n) != v for n, v in TUNED.items()):
        os.execve(sys.executable, sys.orig_argv, os.environ | TUNED)  # begin again, tuned
    logging.set_verbosity_error()
    sys.exit(main())
