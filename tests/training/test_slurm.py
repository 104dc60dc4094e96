"""The script for Slurm: what it asks for, and what it does beside stand-ins for its commands."""

import json
import os
import re
import signal
import subprocess
import time
from pathlib import Path

import pytest
import yaml

from training.conftest import ranks

ROOT = Path(__file__).parents[2]
SCRIPT = ROOT / "configs" / "slurm.sh"
SRUN = """#!/bin/bash
while [ "$1" != bash ]; do shift; done
for task in 0 1; do
    SLURM_PROCID=$task SLURM_LOCALID=$task SLURM_NTASKS=2 "$@" &
    echo $! >> "$PIDS"
done
worst=0
for pid in $(cat "$PIDS"); do wait "$pid"; code=$?; [ $code -gt $worst ] && worst=$code; done
exit $worst
"""
SCONTROL = """#!/bin/bash
[ "$1" = show ] && echo localhost || echo "$@" >> "$REQUEUED"
"""


def options() -> dict[str, str]:
    return dict(re.findall(r"^#SBATCH --([\w-]+)=(\S+)$", SCRIPT.read_text(), re.M))


def test_it_parses_and_names_what_exists():
    assert subprocess.run(["bash", "-n", SCRIPT], check=False).returncode == 0
    for name in set(re.findall(r"configs/[\w./-]+\w", SCRIPT.read_text())):
        assert (ROOT / name).is_file(), name


def test_the_signal_comes_to_all_processes_well_before_the_deadline():
    asked = options()
    name, seconds = re.fullmatch(r"([A-Z]+)@(\d+)", asked["signal"]).groups()  # no "B:"
    assert hasattr(signal, f"SIG{name}")
    hours, minutes, rest = map(int, asked["time"].split(":"))
    assert 60 <= int(seconds) < hours * 3600 + minutes * 60 + rest
    assert asked["ntasks-per-node"] == asked["gpus-per-node"]


def test_a_signalled_job_saves_and_is_queued_again(make_config, tmp_path, request):
    if not ranks(request.config):
        pytest.skip("with --ranks")
    for name, text in (("srun", SRUN), ("scontrol", SCONTROL)):
        (tmp_path / name).write_text(text)
        (tmp_path / name).chmod(0o755)
    config = make_config(run__max_steps=5000, run__save_steps=1000)
    (tmp_path / "run.yaml").write_text(yaml.safe_dump(config.model_dump(mode="json")))
    pids, requeued = tmp_path / "pids", tmp_path / "requeued"
    job = subprocess.Popen(
        ["bash", SCRIPT, tmp_path / "run.yaml", "--set", "parallel.strategy=fsdp2"],
        cwd=ROOT,
        env=os.environ | {
            "PATH": f"{tmp_path}:{os.environ['PATH']}", "PIDS": str(pids), "OMP_NUM_THREADS": "1",
            "REQUEUED": str(requeued), "SLURM_JOB_ID": str(os.getpid()), "SLURM_JOB_NODELIST": "n",
            "PYTHONPATH": str(ROOT / "src"),
        },
    )  # fmt: skip
    log = Path(config.run.output_dir) / "log.jsonl"
    deadline = time.monotonic() + 240
    while not (log.is_file() and '"loss"' in log.read_text()):
        assert job.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.2)
    for pid in pids.read_text().split():
        os.kill(int(pid), signal.SIGTERM)
    assert job.wait(timeout=120) == 143
    assert requeued.read_text() == f"requeue {os.getpid()}\n"
    (saved,) = (Path(config.run.output_dir) / "checkpoints").iterdir()
    state = json.loads((saved / "trainer_state.json").read_text())
    assert saved.name == f"checkpoint-{state['global_step']}"
    assert len(list((saved / "weights").iterdir())) == 2
