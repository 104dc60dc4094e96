"""Which executor runs the tasks of `tokenize`: processes of this machine, Slurm, or Ray.

Slurm's and Ray's are datatrove's. Local processes are our own: datatrove's local executor waits for
ever for a worker that was killed.
"""

import importlib.util
from collections.abc import Callable, Mapping

from versatileffn.data.local import LocalExecutor
from versatileffn.data.stage import Executor
from versatileffn.errors import ConfigError

EXECUTORS = ("local", "slurm", "ray")


def choose_executor(
    name: str, workers: int | None, options: Mapping[str, str], say: Callable[[str], None]
) -> Executor:
    """What runs the tasks.

    Args:
        name: one of `EXECUTORS`.
        workers: tasks at once; None: one for `local`, no limit for the others.
        options: the executor's own.
        say: is told, a line each, what the user should know of jobs.

    Raises:
        ConfigError: there is no such executor, it isn't installed, or options make no sense.
    """
    if name not in EXECUTORS:
        raise ConfigError(f"executor={name!r} is unknown, choose among {', '.join(EXECUTORS)}")
    if name == "local":
        if options:
            raise ConfigError(f"executor-option {min(options)!r} has no effect on local processes")
        return LocalExecutor(1 if workers is None else workers)
    if workers is not None and workers < 1:
        raise ConfigError(f"workers={workers} must be at least 1")
    for module in ("datatrove", "ray")[: 1 if name == "slurm" else 2]:
        if importlib.util.find_spec(module) is None:
            raise ConfigError(
                f"executor={name} needs {module}, which isn't installed; pip install -e '.[scale]'"
            )
    if name == "slurm":
        from versatileffn.data.on_slurm import SlurmExecutor

        return SlurmExecutor(workers, options, say)
    from versatileffn.data.on_ray import RayExecutor

    return RayExecutor(workers, options)
