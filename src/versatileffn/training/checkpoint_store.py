"""Where a run's checkpoints go: there is room, they are sealed and synced, older ones go last."""

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from versatileffn.errors import ResourceError, VersatileFFNError
from versatileffn.training.checkpoints import Binding, commit, complete_checkpoints, prune
from versatileffn.training.log_file import copy_log
from versatileffn.training.loss_window import WINDOW
from versatileffn.training.peers import raising_together
from versatileffn.workspace import durable
from versatileffn.workspace.durable import PARTIAL, check_space, remove, write_json


class CheckpointStore:
    """Publishes the checkpoints that the Trainer writes into `folder / PARTIAL`.

    Args:
        folder: of the checkpoints.
        keep: newest ones that are kept.
        binding: what they belong to; None in processes that publish none.
        log: the run's log, which each checkpoint carries a copy of.
        needed: bytes of one checkpoint, about.
    """

    def __init__(
        self, folder: Path, keep: int, binding: Binding | None, log: Path, needed: int
    ) -> None:
        self.folder = folder
        self.keep = keep
        self.binding = binding
        self.log = log
        self.needed = needed

    def make_room(self) -> None:
        """See that the next checkpoint fits on the disk; all processes call this.

        Raises:
            ResourceError: it doesn't, in the eyes of any process; both sizes are named.
        """
        with raising_together():
            try:
                check_space(self.folder, self.needed)
            except ResourceError as error:
                raise ResourceError(f"the next checkpoint: {error}; {self._resume()}") from None

    @contextmanager
    def writing(self) -> Iterator[None]:
        """Where the disk fills up or fails in the middle, nothing half-written stays.

        Raises:
            ResourceError: the disk is full, or fails.
            ConfigError: the folder can't be written for another reason.
        """
        try:
            with durable.writing(self.folder):
                yield
        except Exception as error:
            free = durable.free_bytes(self.folder)
            with suppress(OSError):  # other processes clear it, too; what stays goes with the next
                remove([self.folder / PARTIAL])
            if free >= self.needed:
                if isinstance(error, VersatileFFNError):
                    raise type(error)(f"{error}; {self._resume()}") from error
                raise
            size = durable.size_text
            raise ResourceError(
                f"{self.folder}: the disk is full; a checkpoint needs {size(self.needed)}, "
                f"{size(free)} are free: free some; {self._resume()}"
            ) from error

    def publish(self, step: int, window: dict[str, Any]) -> None:
        """Give the written checkpoint of `step` its name, and let the oldest one go.

        Args:
            step: optimizer steps that are finished.
            window: losses that weren't logged yet, see `LossWindow.state`.
        """
        assert self.binding is not None
        name = f"checkpoint-{step}"
        partial = self.folder / PARTIAL / name
        with self.writing():
            write_json(partial / WINDOW, window)
            copy_log(self.log, partial)
            commit(partial, self.folder / name, self.binding)
            self.needed = sum(f.stat().st_size for f in (self.folder / name).rglob("*"))
        (self.folder / PARTIAL).rmdir()
        prune(self.folder, self.keep)

    def _resume(self) -> str:
        kept = complete_checkpoints(self.folder)
        where = f"continues from {kept[-1].name}" if kept else "starts again"
        return f"the same command then {where}"
