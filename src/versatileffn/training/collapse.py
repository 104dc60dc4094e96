"""Controllers that have collapsed: nearly all tokens of a layer take one count of loops."""

import json
import logging
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

SHARE = re.compile(r"(layer_\d+)/loop_share_(\d+)")
NEARLY_ALL = 0.99
"""Share of a step's tokens; noise draws another count for a few where none is worth choosing."""
SAMPLES = 3
"""Logged steps in a row."""
EARLY = 0.15
"""Share of the schedule, counted from when all loops are open. Later, one count may be what the
layer has learned."""
OPEN = "open loops one after the other (optim.loop_curriculum={share: 0.4})"
LONGER = "let them open more slowly (optim.loop_curriculum.share)"
PRIOR = "or pull the mean exit towards a prior (model.ffn.loop_prior_coef)"


@dataclass(frozen=True)
class Collapse:
    """What was seen.

    Args:
        layer: its name in the log, `layer_1` is the first.
        loops: the count that nearly all tokens take.
        step: the logged step that made it certain.
    """

    layer: str
    loops: int
    step: int


@dataclass
class CollapseWatch:
    """Looks at a run's logged steps in turn; what it finds depends on nothing else.

    Args:
        schedule_steps: steps of the schedule.
        found: each layer at most once.
    """

    schedule_steps: int
    found: list[Collapse] = field(default_factory=list)
    _rows: dict[tuple[str, int], int] = field(default_factory=dict)
    _opened: int | None = None

    def see(self, step: int, logs: Mapping[str, Any]) -> list[Collapse]:
        """Take one entry of the log; the collapses that it makes certain."""
        shares = {match: logs[key] for key in logs if (match := SHARE.fullmatch(key))}
        most = max((int(match[2]) for match in shares), default=1)
        if most == 1 or logs.get("open_loops", most) < most:
            return []
        if self._opened is None:
            self._opened = step if "open_loops" in logs else 0
        if step > self._opened + EARLY * self.schedule_steps:
            return []
        known = {each.layer for each in self.found}
        new = []
        for match, share in shares.items():
            layer, loops = match[1], int(match[2])
            row = self._rows.get((layer, loops), 0) + 1 if share >= NEARLY_ALL else 0
            self._rows[layer, loops] = row
            if row == SAMPLES and layer not in known:
                new.append(Collapse(layer, loops, step))
        self.found += new
        return new


def watched(log: Path, schedule_steps: int) -> CollapseWatch:
    """A watch that has seen what a run has logged so far."""
    watch = CollapseWatch(schedule_steps)
    for line in log.read_bytes().splitlines() if log.is_file() else ():
        try:
            entry = json.loads(line)
            watch.see(entry["step"], entry)
        except (ValueError, TypeError, LookupError, RecursionError):
            continue  # none of ours: it says nothing of this run
    return watch


class CollapseCallback(TrainerCallback):
    """Warns of each collapsed controller once, early, and says what may help.

    Args:
        log: the run's log, from which a resumed run knows what was seen before.
        schedule_steps: steps of the schedule.
        opens: whether loops are opened one after the other already.
    """

    def __init__(self, log: Path, schedule_steps: int, opens: bool) -> None:
        self.log = log
        self.watch = CollapseWatch(schedule_steps)
        self.remedy = f"{LONGER if opens else OPEN}, {PRIOR}"

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Look at what was logged before the run was interrupted."""
        self.watch = watched(self.log, self.watch.schedule_steps)

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, Any] | None = None,
        **kwargs: Any,
    ) -> None:
        """Look at one logged step."""
        for each in self.watch.see(state.global_step, logs or {}):
            if state.is_world_process_zero:
                logging.getLogger(__name__).warning(
                    "the controller of %s has collapsed: since %d logged steps, at step %d, all "
                    "tokens take %d of its loops; %s",
                    each.layer, SAMPLES, each.step, each.loops, self.remedy,
                )  # fmt: skip
