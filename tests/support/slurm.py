"""A stand-in for Slurm's programs: `sbatch` runs an array's tasks as processes of this machine.

They are real processes, which read the script that was really submitted, outlive whoever submitted
them, and obey the array's limit, its output file and scancel. Queue, partitions and nodes aren't
there. Jobs are folders below $STAND_IN_SLURM; one that has ended has a file `ended`.
"""

import os
import re
import shlex
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

PROGRAMS = ("sbatch", "squeue", "scancel", "scontrol")
PLACE = "STAND_IN_SLURM"


def install(folder: Path) -> dict[str, str]:
    """Put the programs into `folder`/bin; what the environment needs to find them first."""
    binary = folder / "bin"
    binary.mkdir(parents=True)
    for program in PROGRAMS:
        path = binary / program
        path.write_text(f'#!/bin/sh\nexec "{sys.executable}" "{__file__}" {program} "$@"\n')
        path.chmod(0o755)
    return {"PATH": f"{binary}{os.pathsep}{os.environ['PATH']}", PLACE: str(folder)}


def sbatch(*arguments: str) -> None:
    """Start the controller of a job, and say its number as Slurm does."""
    place = Path(os.environ[PLACE])
    number = 1
    while True:
        try:
            (place / str(number)).mkdir()
            break
        except FileExistsError:
            number += 1
    job = place / str(number)
    (job / "script").write_text(Path(arguments[-1]).read_text())
    exported = next(word for word in arguments if word.startswith("--export=ALL,"))
    for pair in exported.removeprefix("--export=ALL,").split(","):
        key, _, value = pair.partition("=")
        os.environ[key] = value
    with (job / "log").open("w") as log:
        controller = subprocess.Popen(
            [sys.executable, __file__, "control", str(job)],
            stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True,
        )  # fmt: skip
    (job / "controller").write_text(str(controller.pid))
    print(f"Submitted batch job {number}")


def control(folder: str) -> None:
    """Run the tasks of a job's array, so many at once as it says."""
    job = Path(folder)
    script = (job / "script").read_text()
    options = dict(re.findall(r"^#SBATCH --([\w-]+)=?(.*)$", script, re.MULTILINE))
    found = re.fullmatch(r"0-(\d+)(?:%(\d+))?", options["array"])
    assert found is not None
    last, limit = int(found[1]), int(found[2] or 2)

    def run(index: int) -> int:
        numbers = {"SLURM_JOB_ID": job.name, "SLURM_ARRAY_JOB_ID": job.name}
        numbers |= {"SLURM_ARRAY_TASK_ID": str(index), "SLURM_NODELIST": "localhost"}
        output = options["output"].replace("%A", job.name).replace("%a", str(index))
        with open(output, "w") as log:
            command = ["bash", str(job / "script")]
            return subprocess.run(
                command, env=os.environ | numbers, stdout=log, stderr=log, check=False
            ).returncode

    with ThreadPoolExecutor(limit) as pool:
        codes = list(pool.map(run, range(last + 1)))
    (job / "ended").write_text(" ".join(map(str, codes)))


def squeue(*arguments: str) -> None:
    """Say RUNNING for a job that is, nothing for one that isn't any more."""
    jobs = next(word for word in arguments if word.startswith("--jobs="))
    job = Path(os.environ[PLACE], jobs.removeprefix("--jobs="))
    if not job.is_dir():
        sys.exit("slurm_load_jobs error: Invalid job id specified")
    if not (job / "ended").exists():
        print("RUNNING")


def scancel(number: str) -> None:
    """Kill a job's processes."""
    job = Path(os.environ[PLACE], number)
    if not (job / "ended").exists():
        os.killpg(int((job / "controller").read_text()), signal.SIGKILL)
        (job / "ended").write_text("cancelled")


def scontrol(*arguments: str) -> None:
    """`show hostnames NODES`: the names, a line each."""
    print(*arguments[2:], sep="\n")


def wait(folder: Path, number: int) -> list[int]:
    """The exit codes of a job's tasks, when all have ended."""
    ended = folder / str(number) / "ended"
    while not ended.exists():  # the test's timeout is what fails
        time.sleep(0.05)
    time.sleep(0.05)
    return [int(code) for code in shlex.split(ended.read_text())]


if __name__ == "__main__":
    globals()[sys.argv[1]](*sys.argv[2:])
