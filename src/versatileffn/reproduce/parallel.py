"""Several processes share an experiment: stages that don't need each other run at once."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import torch

from versatileffn.errors import ConfigError
from versatileffn.models.checkpoint import without_progress_bars
from versatileffn.reproduce.progress import Progress
from versatileffn.reproduce.stages import Stage, StageRunner, sources
from versatileffn.workspace.processes import check_workers, run_in_processes

PRELOAD = "versatileffn.reproduce.run"


def run_at_once(
    stages: Sequence[Stage], root: Path, workers: int, accept: Sequence[str] = ()
) -> None:
    """Run all stages in other processes; whoever asks afterwards finds them finished.

    Args:
        stages: each after those it needs, with work that can be pickled.
        root: the output folder, which is `held` by the caller.
        workers: processes, each with one CPU thread; results don't depend on how many.
        accept: as `StageRunner`'s.

    Raises:
        ConfigError: our sources were edited meanwhile.
        ResourceError: a process died.
        Exception: what a stage raised.
    """
    begun = sources()
    for wave in waves(stages):
        chains = [chain(stages, folder) for folder in wave]
        run = partial(_run_chain, root, accept, begun, chains)
        run_in_processes(run, range(len(chains)), workers, PRELOAD)


def waves(stages: Sequence[Stage]) -> list[list[str]]:
    """Folders whose stages can run beside each other, after all of earlier waves.

    A folder's stages, `FOLDER/VERB`, run one after the other.
    """
    level: dict[str, int] = {}
    for stage in stages:
        folder = _folder(stage.name)
        needed = {_folder(name) for name in stage.needs} - {folder}
        level[folder] = max([level.get(folder, 0), *(1 + level[other] for other in needed)])
    return [
        [folder for folder, wave in level.items() if wave == number]
        for number in range(1 + max(level.values()))
    ]


def chain(stages: Sequence[Stage], folder: str) -> list[Stage]:
    """The stages of one folder and all that they need, in order."""
    wanted: set[str] = set()
    for stage in reversed(stages):  # those that need a stage come after it
        if _folder(stage.name) == folder or stage.name in wanted:
            wanted |= {stage.name, *stage.needs}
    return [stage for stage in stages if stage.name in wanted]


def _folder(name: str) -> str:
    return name.rpartition("/")[0]


def _run_chain(
    root: Path, accept: Sequence[str], begun: str, chains: Sequence[list[Stage]], index: int
) -> None:
    if sources() != begun:  # what this process has imported may be of either version
        raise ConfigError(
            "the package's sources have changed since this run began: run the same command again"
        )
    with without_progress_bars(), cpu_threads(1):
        StageRunner(root, Progress(chains[index]), accept=accept).run(chains[index])


def check_counts(seeds: int, workers: int) -> None:
    """Refuse what makes no sense.

    Raises:
        ConfigError: there are no seeds, or no or too many workers.
    """
    if seeds < 1:
        raise ConfigError(f"seeds={seeds} must be at least 1")
    check_workers(workers)


@contextmanager
def cpu_threads(count: int | None) -> Iterator[None]:
    """Compute with so many CPU threads, then with as many as before."""
    before = torch.get_num_threads()
    torch.set_num_threads(count or before)
    try:
        yield
    finally:
        torch.set_num_threads(before)
