"""The real command, and scripts, in several processes on the CPU."""

import os
import subprocess
import sys
from pathlib import Path

TESTS = Path(__file__).parents[1]
SOURCE = TESTS.parent / "src"


def torchrun(
    config: Path, *arguments: str, ranks: int = 2, script: Path | None = None
) -> subprocess.CompletedProcess:
    """`versatileffn train CONFIG ARGUMENTS`, or a script with these arguments, in processes."""
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", str(ranks)]
    command += ["--rdzv-backend", "c10d", "--rdzv-endpoint", "localhost:0"]
    command += ["-m", "versatileffn.cli.main", "train"] if script is None else [str(script)]
    return subprocess.run(
        [*command, str(config), *arguments],
        env=os.environ | {"PYTHONPATH": f"{SOURCE}{os.pathsep}{TESTS}", "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=300,
    )
