"""From settings to a results file: which cases are missing, and a process to measure them in."""

import dataclasses
import json
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from versatileffn.bench import machine
from versatileffn.bench.results import Results
from versatileffn.bench.suite import Case, suite
from versatileffn.errors import ConfigError, VersatileFFNError


def bench(
    out: Path,
    shares: Mapping[str, Sequence[float]],
    *,
    quick: bool = False,
    only: Sequence[str] = (),
    threads: int = 2,
    device: str = "cpu",
    seed: int = 0,
    overwrite: bool = False,
    command: str = "versatileffn.bench.run.bench",
) -> Results:
    """Measure what is missing in a results file.

    Args:
        out: the JSON file, written after each case.
        shares: loop distributions by name.
        quick: tiny sizes.
        only: beginnings of the names of cases; empty for all.
        threads: of torch.
        device: `cpu` or `cuda`.
        seed: of weights, hidden states and the order of loop counts.
        overwrite: replace results with other settings.
        command: the command line, for the record.

    Raises:
        ConfigError: an argument fits nothing.
        VersatileFFNError: a measuring process stopped with an error, which it has printed.
        KeyboardInterrupt: it was interrupted.
    """
    _check_device(device)
    on_cuda = torch.device(device).type == "cuda"
    chosen = _chosen(suite(shares, seed, quick, on_cuda), only)
    settings: dict[str, Any] = {
        "device": device,
        "threads": threads,
        "quick": quick,
        "seed": seed,
        "shares": {name: list(values) for name, values in shares.items()},
        "machine": machine.device_record(device),
        "versions": machine.measured_versions(),
        "allocator": machine.TUNED,
    }
    results = Results.open(out, settings, command, overwrite)
    missing = results.missing(chosen, machine.measured_sources())
    done = len(chosen) - len(missing)
    if done:
        print(f"{done} of {len(chosen)} cases were measured before")
    for environment in ("tuned", "default"):
        cases = [case for case in missing if case.environment == environment]
        if cases:
            _measure(out, cases, machine.worker_environment(environment, threads))
    return Results.read(out)


def _check_device(device: str) -> None:
    try:
        kind = torch.device(device).type
    except RuntimeError:
        kind = "unknown"
    if kind not in ("cpu", "cuda"):
        raise ConfigError(f"--device {device} is unknown: use cpu or cuda")
    if kind == "cuda" and not torch.cuda.is_available():
        raise ConfigError("--device cuda: torch finds no CUDA device here; use --device cpu")


def _chosen(cases: list[Case], only: Sequence[str]) -> list[Case]:
    for prefix in only:
        if not any(case.name.startswith(prefix) for case in cases):
            kinds = ", ".join(dict.fromkeys(case.kind for case in cases))
            raise ConfigError(f"--only {prefix} fits no case: begin it with one of {kinds}")
    return [case for case in cases if not only or case.name.startswith(tuple(only))]


def _measure(out: Path, cases: list[Case], environment: dict[str, str]) -> None:
    """Run one measuring process.

    It has a process group of its own: Ctrl-C reaches this process alone, which then ends it. Its
    file is whole at any moment, so nothing has to be tidied up.
    """
    with tempfile.TemporaryDirectory() as folder:
        request = Path(folder) / "cases.json"
        request.write_text(json.dumps([dataclasses.asdict(case) for case in cases]))
        command = [sys.executable, "-m", "versatileffn.bench.worker", str(out), str(request)]
        code = subprocess.run(command, env=environment, process_group=0, check=False).returncode
    if code:
        raise VersatileFFNError(
            f"measuring stopped with exit code {code}, see above; finished cases are in {out}"
        )
