"""The default suite's way to the kernels where there is no GPU: a process with the interpreter."""

import json
import os
import re
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

HERE = Path(__file__).parent


@pytest.mark.skipif(find_spec("triton") is None, reason="Triton isn't installed")
@pytest.mark.skipif(os.environ.get("TRITON_INTERPRET") == "1", reason="this is that process")
def test_the_kernels_in_tritons_interpreter():
    run = subprocess.run(
        [sys.executable, "-m", "pytest", str(HERE), "-p", "no:cacheprovider"],
        env=os.environ | {"TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1"},
        cwd=HERE.parents[2],
        capture_output=True,
        text=True,
        timeout=500,
    )
    assert run.returncode == 0, run.stdout[-5000:] + run.stderr[-2000:]
    passed = re.search(r"(\d+) passed", run.stdout)
    assert passed
    assert int(passed[1]) > 50, "the interpreter's tests were skipped:\n" + run.stdout[-2000:]


@pytest.mark.skipif(find_spec("triton") is None, reason="Triton isn't installed")
@pytest.mark.skipif(os.environ.get("TRITON_INTERPRET") == "1", reason="one process is enough")
def test_the_measuring_script_runs_dry(tmp_path):
    root, out = HERE.parents[2], tmp_path / "dry.json"
    command = [sys.executable, "-m", "benchmarks", "--device", "cuda", "--quick", "--out"]
    environment = {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(root / "src")}
    environment = os.environ | environment | {"TRITON_INTERPRET": "1"}
    run = subprocess.run(
        [*command, str(out), "--only", "inference"], env=environment, cwd=root, capture_output=True,
        text=True, timeout=300,
    )  # fmt: skip
    assert run.returncode == 0, run.stdout + run.stderr
    report = json.loads(out.read_text())
    case = report["cases"]["inference/cuda/d1024/2.5"]["found"]
    assert set(case["errors"]) == {"masked", "triton", "triton-graph"}
    assert case["ratios"].keys() >= {"triton/dense", "packed/triton-graph"}
    assert case["seconds"].keys() >= {"triton", "triton-graph"}
