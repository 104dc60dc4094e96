"""Measure the CUDA path in one command; needs a CUDA device, torch with CUDA, and Triton.

    python -m benchmarks.gpu             # about eight minutes; benchmarks/results/gpu.json
    python -m benchmarks.gpu --dry-run   # tiny, on CPU in Triton's interpreter: its own code path

Parts: the matrix peak; inference against E[ℓ̂] × the dense FFN; decoding one token in CUDA graphs;
the training step. Outputs are compared before anything is timed. A part that fails is recorded
with its error, and the others go on.
"""

import argparse
import os
import sys
import time
import traceback
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

if "--dry-run" in sys.argv:
    os.environ["TRITON_INTERPRET"] = "1"  # before Triton is imported for the first time

import torch
import triton

from benchmarks.distributions import SHARES
from benchmarks.gpu_cases import DECODE_TILES, Bench, decode, inference, peak, training
from benchmarks.machine import ROOT, cpu_record
from versatileffn.execution.kernels.tiles import chosen_tiles
from versatileffn.provenance import source_digest, versions
from versatileffn.workspace.durable import check_file, write_json

Parts = dict[str, Callable[[], dict[str, Any]]]


def parts(bench: Bench) -> Parts:
    """What to do, most important first, by name."""
    planned: Parts = {"peak": partial(peak, bench)}
    means = ("2.5",) if bench.dry else tuple(SHARES)
    widths = (32,) if bench.dry else (1024, 2048)
    planned |= {
        f"inference/{widths[0]}/{m}": partial(inference, bench, widths[0], m) for m in means
    }
    planned |= {f"decode/1/{tile}": partial(decode, bench, 1, tile) for tile in DECODE_TILES}
    planned |= {f"training/{m}": partial(training, bench, m) for m in means if m in ("1.4", "2.5")}
    planned |= {f"decode/{n}": partial(decode, bench, n, "n16-k256-s4") for n in (8, 32)}
    for width in widths[1:]:
        planned |= {f"inference/{width}/{m}": partial(inference, bench, width, m) for m in means}
    return planned


def goals(found: dict[str, Any]) -> dict[str, Any]:
    """What was reached of goals 8 and 9, from the cases measured so far."""
    done = {name: case for name, case in found.items() if "error" not in case}
    many = [case for name, case in done.items() if name.startswith("inference/")]
    one = [case for name, case in done.items() if name.startswith("decode/1/")]
    reached: dict[str, Any] = {}
    for name in ("triton", "triton-graph") if many else ():
        over = [case["over_expected_loops_times_dense"][name]["median"] for case in many]
        share = [case["share_of_peak"][name] for case in many]
        reached[f"8 {name}"] = {
            "largest ratio": max(over), "at most": 1.10,
            "smallest share of peak": min(share), "at least": 0.70,
        }  # fmt: skip
    if one:  # the tile that is fastest at four loops, not the one with the prettiest ratio
        best = min(one, key=lambda case: case["seconds"]["4 loops"]["median"])
        ratio = best["over_1_loop"]["4 loops"]["median"]
        reached["9"] = {"tile": best["tile"], "ratio": ratio, "at most": 2.7}
    return reached


def settings(bench: Bench) -> dict[str, Any]:
    """What the numbers depend on."""
    device = cpu_record()
    if not bench.dry:
        properties = torch.cuda.get_device_properties(0)
        device = {
            "name": properties.name,
            "processors": properties.multi_processor_count,
            "capability": [properties.major, properties.minor],
            "cuda": torch.version.cuda,
        }
    return {
        "command": "python -m benchmarks.gpu " + " ".join(sys.argv[1:]),
        "device": device, "dtype": bench.dtype, "dry_run": bench.dry, "seed": 0,
        "versions": versions("torch") | {"triton": triton.__version__}, "sources": source_digest(),
    }  # fmt: skip


def main() -> int:
    """Run all parts; 1 if one failed."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks/results/gpu.json")
    parser.add_argument("--only", default="", help="parts whose name begins with this")
    parser.add_argument("--dry-run", action="store_true", help="tiny, on CPU, measures nothing")
    given = parser.parse_args()
    if not given.dry_run and not torch.cuda.is_available():
        print("error: no CUDA device here: try --dry-run", file=sys.stderr)
        return 1
    bench = Bench(given.dry_run)
    report: dict[str, Any] = {"settings": settings(bench), "cases": {}}
    check_file(given.out)
    for name, part in parts(bench).items():
        if not name.startswith(given.only) and name != "peak":
            continue
        began = time.monotonic()
        try:
            report["cases"][name] = part()
        except Exception as error:  # the others go on
            traceback.print_exc()
            report["cases"][name] = {"error": f"{type(error).__name__}: {error}"[:2000]}
        report |= {"tiles": chosen_tiles(), "goals": goals(report["cases"])}
        write_json(given.out, report)
        print(f"{name}: {time.monotonic() - began:.1f} s", flush=True)
    print(f"goals: {report['goals']}")
    return int(any("error" in case for case in report["cases"].values()))


if __name__ == "__main__":
    sys.exit(main())
