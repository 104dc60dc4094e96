"""Tasks as one array job of Slurm, written and submitted by datatrove; the caller waits for it."""

import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path

from datatrove.executor.slurm import SlurmPipelineExecutor

from versatileffn.data import remote
from versatileffn.data.stage import Stage
from versatileffn.errors import ConfigError, ResourceError
from versatileffn.workspace.durable import write_json
from versatileffn.workspace.manifest import read_record

TIME = "24:00:00"
_GONE = "Invalid job id"  # squeue forgets a job some minutes after its end
TRIES = 120
"""Times in a row that squeue may fail, `remote.POLL_SECONDS` apart: ten minutes."""
_PROGRAMS = ("sbatch", "squeue", "scancel")


class SlurmExecutor:
    """Submits an array job and waits for its end; a job that an earlier call left is waited for.

    Args:
        workers: tasks at once; None is no limit.
        options: of sbatch, without the dashes; `partition` is needed.
        say: is told of jobs.

    Raises:
        ConfigError: jobs can't be submitted from here, or no partition is named.
    """

    def __init__(
        self, workers: int | None, options: Mapping[str, str], say: Callable[[str], None]
    ) -> None:
        self.workers, self.options, self.say = workers, dict(options), say
        missing = [program for program in _PROGRAMS if shutil.which(program) is None]
        if missing:
            raise ConfigError(
                f"executor=slurm needs {', '.join(missing)}, which isn't found here: run it where "
                "jobs are submitted"
            )
        if "SLURM_ARRAY_TASK_ID" in os.environ:
            raise ConfigError("executor=slurm inside an array job can't submit one: run it outside")
        where = "which says where jobs run: one of those that `sinfo` lists"
        remote.check_options("slurm", options, needed={"partition": where})

    def close(self) -> None:
        """Nothing is held: a job goes on without us."""

    def run(self, stage: Stage, ranks: list[int], done: Callable[[], None]) -> None:
        """See `Executor`."""
        note = stage.folder / "job.json"
        earlier = (read_record(note) or {}).get("job")
        queue = _Queue()
        if earlier is not None and queue.has(earlier):
            job = earlier
            self.say(f"waiting for Slurm job {job}, which an earlier call submitted")
        else:
            job = self._submit(stage, ranks)
            write_json(note, {"job": job})
            self.say(
                f"submitted Slurm job {job} of {len(ranks)} tasks and wait for it; stopped, this "
                f"command takes up where the job is by then (`scancel {job}` ends the job)"
            )
        watch = remote.Watch(stage, ranks, done)
        cancelled = False
        # To its end, also when cancelled: what its tasks write in may go then.
        while queue.has(job):
            if remote.failure(stage) is not None and not cancelled:
                cancelled = True
                subprocess.run(["scancel", job], check=False)
            watch.poll()
            time.sleep(remote.POLL_SECONDS)
        watch.poll()
        remote.check_ended(stage, ranks)

    def _submit(self, stage: Stage, ranks: list[int]) -> str:
        """Submit the tasks; the job's number.

        Raises:
            ConfigError: sbatch refuses.
        """
        with remote.datatrove_at(stage):
            executor = _ArrayJob(
                pipeline=[remote.RemoteTask(stage, ranks)],
                tasks=len(ranks),
                time=TIME,
                partition=self.options["partition"],
                workers=self.workers or -1,
                job_name="versatileffn-tokenize",
                qos="",
                env_command=f'export PATH="{Path(sys.executable).parent}:$PATH"',
                sbatch_args=self.options,
                max_array_size=len(ranks),
                logging_dir=str(remote.logs(stage)),
                skip_completed=False,
                with_srun=False,
            )
            try:
                executor.run()
            except subprocess.CalledProcessError as error:
                raise ConfigError(
                    f"sbatch refused the job with exit code {error.returncode}, and said why "
                    "above: change what --executor-option sets"
                ) from error
        return str(executor.job_id)


class _ArrayJob(SlurmPipelineExecutor):
    """Without the second job that would add up datatrove's own statistics."""

    def launch_merge_stats(self) -> None:
        """Submit nothing: the statistics are ours, and its folder may be gone by then."""


class _Queue:
    """Slurm's, which may be out of reach for a while, and not for ever."""

    def __init__(self) -> None:
        self._failures = 0

    def has(self, job: str) -> bool:
        """Whether Slurm still has tasks of a job to run; it has, as long as it doesn't answer.

        Raises:
            ResourceError: it hasn't answered for `TRIES` calls in a row.
        """
        command = ["squeue", "--noheader", "--format=%T", f"--jobs={job}"]
        answer = subprocess.run(command, capture_output=True, text=True, check=False)
        if not answer.returncode:
            self._failures = 0
            return bool(answer.stdout.strip())
        if _GONE in answer.stderr:
            return False
        self._failures += 1
        if self._failures >= TRIES:
            said = " ".join(answer.stderr.split())[:300] or f"exit code {answer.returncode}"
            raise ResourceError(
                f"squeue failed {TRIES} times in a row ({said}), so nobody knows of Slurm job "
                f"{job}, which may go on: when squeue answers, run the same command again"
            )
        return True
