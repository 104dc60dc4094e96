"""Several processes share an experiment: stages that don't need each other run at once."""

import multiprocessing
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import torch

from versatileffn.errors import ConfigError
from versatileffn.models.checkpoint import without_progress_bars
from versatileffn.reproduce.progress import Progress
from versatileffn.reproduce.stages import Stage, StageRunner


def run_in_processes(
    stages: Sequence[Stage], root: Path, workers: int, accept: Sequence[str] = ()
) -> None:
    """Run all stages in other processes; whoever asks afterwards finds them finished.

    Args:
        stages: each after those it needs, with work that can be pickled.
        root: the output folder, which is `held` by the caller.
        workers: processes, each with one CPU thread; results don't depend on how many.
        accept: as `StageRunner`'s.
    """
    spawn = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(workers, mp_context=spawn) as pool:
        for wave in waves(stages):
            chains = [chain(stages, folder) for folder in wave]
            list(pool.map(partial(_run_chain, root, tuple(accept)), chains))


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


def _run_chain(root: Path, accept: tuple[str, ...], stages: list[Stage]) -> None:
    with without_progress_bars(), cpu_threads(1):
        StageRunner(root, Progress(stages), accept=accept).run(stages)


def check_counts(**counts: int) -> None:
    """Refuse what can't be counted.

    Raises:
        ConfigError: one of them isn't positive.
    """
    for name, value in counts.items():
        if value < 1:
            raise ConfigError(f"{name}={value} must be at least 1")


@contextmanager
def cpu_threads(count: int | None) -> Iterator[None]:
    """Compute with so many CPU threads, then with as many as before."""
    before = torch.get_num_threads()
    torch.set_num_threads(count or before)
    try:
        yield
    finally:
        torch.set_num_threads(before)
