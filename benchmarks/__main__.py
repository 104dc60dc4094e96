"""Hold the layer and whole models to this project's goals, beside the alternatives.

    python -m benchmarks                      # about 22 minutes; benchmarks/results/cpu.json
    python -m benchmarks --only decode/d512   # some cases; repeatable
    python -m benchmarks --quick --out runs/quick.json   # a minute: does it work?
    python -m benchmarks --render             # the tables into docs/performance.md; no clock
    python -m benchmarks --device cuda        # the Triton kernels; benchmarks/results/cuda.json
    TRITON_INTERPRET=1 python -m benchmarks --device cuda --quick   # the same without a GPU

Results are written after each case, so the same command goes on where it was stopped.
"""

import argparse
import os
import platform
import shlex
import sys
import traceback
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch
from transformers.utils import logging

from benchmarks.cases import BRIEF, BUDGET, FUNCTIONS, all_cases
from benchmarks.report import BEGIN, END, FORMAT, read_results, tables_of, write_into
from versatileffn.errors import ConfigError, VersatileFFNError
from versatileffn.provenance import machine, source_digest, versions
from versatileffn.workspace.durable import write_json
from versatileffn.workspace.lock import locked

ROOT = Path(__file__).resolve().parents[1]
PAGE = ROOT / "docs/performance.md"
MEASURED = ("ffn", "execution", "models")
"""Rooms of the package whose sources a time depends on."""
TUNED = {"MALLOC_MMAP_MAX_": "0", "MALLOC_TRIM_THRESHOLD_": "-1"}
"""glibc: large blocks come from the heap, and the heap is never given back. README.md says why."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Parse, measure or render; 1 after an error that one line tells, or where a case failed."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--out", type=Path, help="JSON file, continued if there")
    parser.add_argument("--only", action="append", default=[], help="beginning of cases' names")
    parser.add_argument("--quick", action="store_true", help="tiny sizes")
    parser.add_argument("--render", action="store_true", help="OUT's tables into the page")
    given = parser.parse_args(arguments)
    given.out = given.out or ROOT / f"benchmarks/results/{given.device}.json"
    try:
        if given.render:
            write_into(PAGE, BEGIN, tables_of(given.out, PAGE), END)
        else:
            measure_missing(given)
    except VersatileFFNError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("stopped: run the same command again to continue", file=sys.stderr)
        return 130
    print(f"written into {PAGE if given.render else given.out}")
    return 0


def measure_missing(given: argparse.Namespace) -> None:
    """Measure what a results file lacks; nobody else may write into its folder meanwhile.

    Raises:
        ConfigError: an argument fits nothing, the file can't be continued, another run is writing
            there, or a case failed; the others were measured.
    """
    if given.device == "cuda" and not (torch.cuda.is_available() or given.quick):
        raise ConfigError("there is no CUDA device here: pass --quick, for Triton's interpreter")
    wanted = all_cases(given.device, given.quick)
    if given.only:
        wanted = {n: s for n, s in wanted.items() if n.startswith(tuple(given.only))}
    if not wanted:
        raise ConfigError(f"--only {' '.join(given.only)} fits no case: use {', '.join(FUNCTIONS)}")
    budget, failed = BRIEF if given.quick else BUDGET, []
    with locked(given.out.parent, str(given.out)):
        results = open_results(given)
        known = results["cases"]
        missing = [
            name
            for name, settings in wanted.items()
            if name not in known or known[name]["inputs"]["settings"] != settings
        ]
        print(f"{len(wanted) - len(missing)} of {len(wanted)} cases were measured before")
        for number, name in enumerate(missing, start=1):
            print(f"[{number}/{len(missing)}] {name}", flush=True)
            try:
                found = FUNCTIONS[name.partition("/")[0]](budget=budget, **wanted[name])
            except Exception:  # a mismatch, or a kernel that doesn't run here
                traceback.print_exc()
                failed.append(name)
                continue
            inputs = {"settings": wanted[name], "budget": budget}
            known[name] = {"inputs": inputs, "found": found}
            write_json(given.out, results)
    if failed:
        raise ConfigError(f"not measured: {', '.join(failed)}")


def open_results(given: argparse.Namespace) -> dict[str, Any]:
    """The results to continue, or new ones.

    Raises:
        ConfigError: the file holds something else, or results of other settings.
    """
    command = shlex.join(["python", "-m", "benchmarks", *sys.argv[1:]])
    here = machine(accelerator=given.device == "cuda")
    settings = {
        "source_sha256": source_digest(MEASURED),
        "device": given.device,
        "threads": here.pop("threads"),
        "quick": given.quick,
        "seed": 0,
        "machine": here,
        "versions": versions("torch", "transformers", "numpy")
        | {"libc": "-".join(platform.libc_ver())},
    }
    if not given.out.exists():
        created = datetime.now(UTC).isoformat(timespec="seconds")
        return {"format": FORMAT, "commands": [command], "created": created,
                "settings": settings, "cases": {}}  # fmt: skip
    results = read_results(given.out)
    changed = [key for key, value in settings.items() if results["settings"].get(key) != value]
    if changed:
        raise ConfigError(
            f"{given.out} was measured with another {changed[0]}: choose another --out, or delete "
            "it first"
        )
    results["commands"] = list(dict.fromkeys([*results["commands"], command]))
    return results


if __name__ == "__main__":
    if "--render" not in sys.argv and any(os.environ.get(n) != v for n, v in TUNED.items()):
        os.execve(sys.executable, sys.orig_argv, os.environ | TUNED)  # begin again, tuned
    logging.set_verbosity_error()
    sys.exit(main())
