"""Tasks on a Ray cluster by datatrove: the one that is running, or one of this machine's cores."""

import logging
import os
import threading
from collections.abc import Callable, Mapping

import ray
from datatrove.executor.ray import RayPipelineExecutor

from versatileffn.data import remote
from versatileffn.data.stage import Stage
from versatileffn.errors import ConfigError

MEMORY_GB = 2.0
_OPTIONS = ("memory-gb",)


class RayExecutor:
    """Runs tasks as actors of Ray, each reserving a core and some memory.

    Args:
        workers: tasks at once; None is as many as the cluster has room for.
        options: `memory-gb`, gigabytes that a task reserves.

    Raises:
        ConfigError: an option is unknown or senseless, or no cluster answers.
    """

    def __init__(self, workers: int | None, options: Mapping[str, str]) -> None:
        remote.check_options("ray", options, known=_OPTIONS)
        self.workers = workers
        self.memory_gb = _positive(options.get("memory-gb", str(MEMORY_GB)))
        self._ours = not ray.is_initialized()
        if self._ours:
            os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
            try:
                ray.init(log_to_driver=False, logging_level=logging.ERROR, include_dashboard=False)
            except ConnectionError as error:
                raise ConfigError(
                    f"executor=ray: no cluster answers ({error}); start it, or unset RAY_ADDRESS"
                ) from error
        self._check_room()

    def _check_room(self) -> None:
        """datatrove waits for ever for room that no machine has."""
        most = max(node["Resources"].get("memory", 0) for node in ray.nodes()) / 2**30
        if self.memory_gb > most:
            self.close()
            raise ConfigError(
                f"executor-option memory-gb={self.memory_gb:g} is more than Ray has on any machine "
                f"({most:.1f}): lower it"
            )

    def close(self) -> None:
        """Leave the cluster, if it was joined here."""
        if self._ours:
            ray.shutdown()

    def run(self, stage: Stage, ranks: list[int], done: Callable[[], None]) -> None:
        """See `Executor`."""
        with remote.datatrove_at(stage):
            executor = RayPipelineExecutor(
                pipeline=[remote.RemoteTask(stage, ranks)],
                tasks=len(ranks),
                workers=self.workers or -1,
                mem_per_cpu_gb=self.memory_gb,
                logging_dir=str(remote.logs(stage)),
                skip_completed=False,
            )
            watch, over = remote.Watch(stage, ranks, done), threading.Event()

            def keep_polling() -> None:
                while not over.wait(remote.POLL_SECONDS):
                    watch.poll()

            polling = threading.Thread(target=keep_polling, daemon=True)
            polling.start()
            try:
                executor.run()
            finally:
                over.set()
                polling.join()
            watch.poll()
        remote.check_ended(stage, ranks)


def _positive(text: str) -> float:
    try:
        number = float(text)
    except ValueError:
        number = 0.0
    if not 0 < number < float("inf"):
        raise ConfigError(f"executor-option memory-gb={text!r} must be a number above 0")
    return number
