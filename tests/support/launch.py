"""The real command under torchrun, on the CPU."""

import os
import subprocess
import sys
from pathlib import Path

SOURCE = Path(__file__).parents[2] / "src"


def torchrun(config: Path, *arguments: str) -> subprocess.CompletedProcess:
    """`versatileffn train CONFIG ARGUMENTS` in two processes."""
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", "2"]
    command += ["--rdzv-backend", "c10d", "--rdzv-endpoint", "localhost:0"]
    command += ["-m", "versatileffn.cli.main", "train", str(config), *arguments]
    return subprocess.run(
        command,
        env=os.environ | {"PYTHONPATH": str(SOURCE), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=300,
    )
