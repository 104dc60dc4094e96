"""Signals, or a deadline, end a run after the step it is in, with a checkpoint."""

import os
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

import torch
from torch import distributed
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from versatileffn.signals import ENDING, listening

STOPPING = "stopping after this step (Ctrl-C: at once)"


class StopRequest:
    """Whether this process was asked to stop, and by which signal (0: it wasn't).

    Args:
        deadline: when it is asked by itself, as if by SIGUSR1, by the monotonic clock; None: never.
    """

    def __init__(self, deadline: float | None = None) -> None:
        self._heard = 0
        self._deadline = deadline

    @property
    def signal(self) -> int:
        """The signal."""
        if not self._heard and self._deadline is not None and time.monotonic() >= self._deadline:
            self._say(f"run.deadline is over: {STOPPING}")
            self._heard = signal.SIGUSR1
        return self._heard

    def _say(self, text: str) -> None:
        if os.environ.get("RANK", "0") == "0":
            os.write(2, f"{text}\n".encode())  # not print: a signal comes in the middle of one

    @contextmanager
    def listening(self) -> Iterator[None]:
        """Note signals while the block runs, instead of ending; a second Ctrl-C ends at once.

        A signal that is ignored, as SIGHUP under nohup, stays so. Only the main thread of a
        process is told of signals: in another one nothing changes.
        """
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        process = os.getpid()

        def note(number: int, frame: FrameType | None) -> None:
            if os.getpid() != process:
                return  # a process that reads ahead, forked from this one, which will end it
            if self._heard and number == signal.SIGINT:
                raise KeyboardInterrupt
            if not self._heard:
                self._say(STOPPING)
            self._heard = number

        with listening(note):
            yield


def ignore_signals(_worker: int) -> None:
    """Leave it to the training process when its readers end; they get its signals as well."""
    for number in ENDING:
        signal.signal(number, signal.SIG_IGN)


class StopCallback(TrainerCallback):
    """Ends training when any process was asked to, with a checkpoint of the step just finished.

    Args:
        request: of this process.
    """

    def __init__(self, request: StopRequest) -> None:
        self.request = request
        self.signal = 0
        """The signal that training was stopped by; all processes agree on it."""

    def _look(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        if not 0 < state.global_step < state.max_steps:
            return  # nothing to save yet; or the run ends by itself
        if args.world_size > 1:
            asked = torch.tensor(self.request.signal, device=args.device)
            distributed.all_reduce(asked, distributed.ReduceOp.MAX)
            self.signal = int(asked)
        else:
            self.signal = self.request.signal
        if self.signal:
            control.should_save = control.should_training_stop = True

    on_step_end = on_evaluate = _look  # evaluating may take long
