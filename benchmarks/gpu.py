"""Measure the CUDA path in one command; needs a CUDA device, torch with CUDA, and Triton.

    python benchmarks/gpu.py             # about eight minutes; benchmarks/results/gpu.json
    python benchmarks/gpu.py --tests     # and runs the tests that need a device
    python benchmarks/gpu.py --dry-run   # tiny, on CPU in Triton's interpreter: its own code path

Parts: the matrix peak; inference against E[ℓ̂] × the dense FFN; decoding one token in CUDA graphs;
the training step. Outputs are compared before anything is timed. A part that fails is recorded
with its error, and the others go on.
"""

import argparse
import os
import subprocess
import sys
import time
import traceback
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
if "--dry-run" in sys.argv:
    # before Triton is imported for the first time
    os.environ["TRITON_INTERPRET"] = "1"

import torch  # noqa: E402
from gpu_cases import DECODE_TILES, Bench, decode, inference, peak, training  # noqa: E402

from versatileffn.bench.distributions import SHARES  # noqa: E402
from versatileffn.bench.machine import device_record, source_digest, versions  # noqa: E402
from versatileffn.execution.kernels.tiles import chosen_tiles  # noqa: E402
from versatileffn.files import write_json  # noqa: E402


def device_tests(seconds: float) -> dict[str, Any]:
    """Run the tests that a machine without a device skips."""
    command = [sys.executable, "-m", "pytest", "tests/execution/kernels", "tests/parity"]
    command += ["--deselect", "tests/execution/kernels/test_in_interpreter.py"]
    run = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=seconds)
    return {"exit_code": run.returncode, "output": run.stdout[-4000:]}


def cases(bench: Bench, tests: bool) -> dict[str, Callable[[], dict[str, Any]]]:
    """What to do, most important first, by name."""
    planned: dict[str, Callable[[], dict[str, Any]]] = {"peak": partial(peak, bench)}
    widths = (32,) if bench.dry else (1024, 2048)
    for d_model in widths:
        for mean in ("2.5",) if bench.dry else SHARES:
            planned[f"inference/{d_model}/{mean}"] = partial(inference, bench, d_model, mean)
        if d_model == widths[0]:
            for tile in DECODE_TILES:
                planned[f"decode/1/{tile}"] = partial(decode, bench, 1, tile)
            for mean in ("2.5",) if bench.dry else ("1.4", "2.5"):
                planned[f"training/{mean}"] = partial(training, bench, mean)
            for tokens in (8, 32):
                planned[f"decode/{tokens}"] = partial(decode, bench, tokens, "n16-k256-s4")
    if tests:
        planned["tests"] = partial(device_tests, 240.0)
    return planned


def goals(found: dict[str, Any]) -> dict[str, Any]:
    """What was reached of goals 8 and 9, from the cases measured so far."""
    done = {name: case for name, case in found.items() if "error" not in case}
    many = [case for name, case in done.items() if name.startswith("inference/")]
    one = {name: case for name, case in done.items() if name.startswith("decode/1/")}
    reached: dict[str, Any] = {}
    for name in ("triton", "triton-graph") if many else ():
        over = [case["over_expected_loops_times_dense"][name]["median"] for case in many]
        share = [case["share_of_peak"][name] for case in many]
        reached[f"8 {name}"] = {
            "largest ratio": max(over), "at most": 1.10,
            "smallest share of peak": min(share), "at least": 0.70,
        }  # fmt: skip
    if one:
        over = {name: case["over_1_loop"]["4 loops"]["median"] for name, case in one.items()}
        # the tile that is fastest at four loops, not the one with the prettiest ratio
        best = min(one, key=lambda name: one[name]["seconds"]["4 loops"]["median"])
        reached["9"] = {"case": best, "ratio": over[best], "at most": 2.7}
    return reached


def settings(bench: Bench) -> dict[str, Any]:
    """What the numbers depend on."""
    import triton

    record = device_record(bench.device)
    if not bench.dry:
        properties = torch.cuda.get_device_properties(0)
        record |= {
            "processors": properties.multi_processor_count,
            "capability": list(torch.cuda.get_device_capability()),
            "cuda": torch.version.cuda,
        }
    return {
        "command": "python benchmarks/gpu.py " + " ".join(sys.argv[1:]),
        "device": record, "dtype": bench.dtype, "dry_run": bench.dry, "seed": 0,
        "versions": versions() | {"triton": triton.__version__}, "sources": source_digest(),
    }  # fmt: skip


def main() -> int:
    """Run all cases; 1 if one failed."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks/results/gpu.json")
    parser.add_argument("--minutes", type=float, default=8.0, help="no case begins after these")
    parser.add_argument("--only", default="", help="cases whose name begins with this")
    parser.add_argument("--tests", action="store_true", help="run the tests that need a device")
    parser.add_argument("--dry-run", action="store_true", help="tiny, on CPU, measures nothing")
    arguments = parser.parse_args()
    if not arguments.dry_run and not torch.cuda.is_available():
        print("error: no CUDA device here: try --dry-run", file=sys.stderr)
        return 1
    bench = Bench(arguments.dry_run, 60 * arguments.minutes)
    report: dict[str, Any] = {"settings": settings(bench), "cases": {}}
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    for name, case in cases(bench, arguments.tests).items():
        if not name.startswith(arguments.only) and name != "peak":
            continue
        started = time.monotonic()
        if started > bench.until:
            report["cases"][name] = {"error": "not begun: out of time"}
        else:
            try:
                report["cases"][name] = case()
            except Exception as error:  # the others go on
                traceback.print_exc()
                report["cases"][name] = {"error": f"{type(error).__name__}: {error}"[:2000]}
                with suppress(Exception):
                    torch.cuda.empty_cache()
        report |= {"tiles": chosen_tiles(), "goals": goals(report["cases"])}
        write_json(arguments.out, report)
        print(f"{name}: {time.monotonic() - started:.1f} s {_headline(report['cases'][name])}")
    return int(any("error" in case for case in report["cases"].values()))


def _headline(case: dict[str, Any]) -> str:
    for key in ("error", "exit_code", "flops_per_second"):
        if key in case and not isinstance(case[key], dict):
            return str(case[key])[:200]
    for key in ("over_expected_loops_times_dense", "over_1_loop", "over_dense"):
        if key in case:
            medians = {name: round(value["median"], 3) for name, value in case[key].items()}
            return f"{key}: {medians} share of peak: {case.get('share_of_peak')}"
    return ""


if __name__ == "__main__":
    sys.exit(main())
