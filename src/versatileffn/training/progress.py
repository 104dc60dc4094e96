"""How a run is coming along: tokens per second, and a line for whoever watches."""

import time
from datetime import timedelta
from typing import Any

import torch
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from versatileffn.training.evaluation import PREFIX


class SpeedCallback(TrainerCallback):
    """Measures tokens per second of training alone: no evaluation, no saving, no first steps.

    Args:
        tokens_per_step: tokens of one optimizer step over all processes.
        skip: steps at the beginning that aren't measured (warming up).
    """

    def __init__(self, tokens_per_step: int, skip: int = 3) -> None:
        self.tokens_per_step = tokens_per_step
        self.skip = skip
        self.seconds = 0.0
        self.measured = 0
        self._seen = 0
        self._mark = 0.0

    @property
    def tokens_per_second(self) -> float | None:
        """Tokens per second over all processes, None before there is a measurement."""
        return self.tokens_per_step * self.measured / self.seconds if self.measured else None

    @property
    def seconds_per_step(self) -> float | None:
        """Seconds of one optimizer step, None before there is a measurement."""
        return self.seconds / self.measured if self.measured else None

    def _now(self, *_: Any, **__: Any) -> None:
        self._mark = time.perf_counter()

    on_train_begin = on_log = on_evaluate = on_save = _now

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Add the step's duration, once its work on the accelerator is done."""
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        now = time.perf_counter()
        self._seen += 1
        if self._seen > min(self.skip, state.max_steps // 4):
            self.seconds += now - self._mark
            self.measured += 1
        self._mark = now


def progress_line(
    step: int, max_steps: int, logs: dict[str, Any], speed: SpeedCallback
) -> str | None:
    """One readable line for a log entry; None for entries without a loss or scores.

    Args:
        step: optimizer steps finished.
        max_steps: of the whole run.
        logs: what was logged.
        speed: measures tokens per second.
    """
    head = f"step {step:>{len(str(max_steps))}}/{max_steps}"
    if "eval_loss" in logs:
        bits = logs["eval_bits_per_byte"]
        return f"{head}  held-out loss {logs['eval_loss']:.4f} nats/token  {bits:.4f} bits/byte"
    scores = {key.removeprefix(PREFIX): logs[key] for key in logs if key.startswith(PREFIX)}
    if scores:
        return "  ".join([head, *(f"{name} {value:.3f}" for name, value in scores.items())])
    if "loss" not in logs:
        return None
    parts = [head, f"loss {logs['loss']:.4f}", f"lr {logs['learning_rate']:.2e}"]
    if "tau" in logs:
        parts.append(f"tau {logs['tau']:.2f}")
    loops = [value for key, value in logs.items() if key.endswith("/mean_loops")]
    if loops:
        parts.append(f"loops {sum(loops) / len(loops):.2f}")
    rate, per_step = speed.tokens_per_second, speed.seconds_per_step
    if rate is not None and per_step is not None:
        left = timedelta(seconds=round(per_step * (max_steps - step)))
        parts += [f"{rate:,.0f} tokens/s", f"left {left}"]
    return "  ".join(parts)
