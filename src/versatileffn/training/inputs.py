"""What a run's outcome depends on, and whether a run may go on with other settings."""

import hashlib
import json
from pathlib import Path
from typing import Any

from versatileffn.data.order import order_name
from versatileffn.errors import ConfigError
from versatileffn.imports import import_modules
from versatileffn.training.batches import BatchPlan
from versatileffn.training.config import TrainConfig
from versatileffn.training.parallel import shards
from versatileffn.workspace.manifest import sha256

# What may differ between the start of a run and its continuation without changing its outcome.
_FREE = ("output_dir", "report_to", "save_total_limit", "dataloader_num_workers", "deadline")
# What says how long the run is; `steps` and `schedule_steps` say what came of it.
_LENGTH = ("max_steps", "num_train_epochs", "schedule_steps")
# What each step depends on; the number of steps is left out.
_BINDING = ("format", "config", "imports", "tokens_meta_sha256", "schedule_steps", "window_order")
_LENGTHS = ("steps", "schedule_steps")
FORMAT = 3
"""Of a run's checkpoints: a run that was started with another can't go on."""

Inputs = dict[str, Any]


def run_inputs(config: TrainConfig, plan: BatchPlan) -> Inputs:
    """Everything a run's outcome depends on: configuration, code, tokens, processes, length.

    The user's own code is imported for it.

    Raises:
        ConfigError: it can't be.
    """
    settings = config.model_dump(mode="json")
    for key in (*_FREE, *_LENGTH):
        del settings["run"][key]
    settings["parallel"] = "fsdp2" if shards(config.parallel) else None  # what checkpoints are
    return {
        "format": FORMAT,
        "config": settings,
        "imports": import_modules(config.model.imports),
        "tokens_meta_sha256": sha256(Path(config.data.tokens) / "meta.json"),
        "world_size": plan.world_size,
        "schedule_steps": config.run.schedule_steps or plan.max_steps,
        "steps": plan.max_steps,
        "window_order": order_name(plan.num_windows) if plan.shuffled else "stored",
    }


def inputs_sha256(inputs: Inputs) -> str:
    """Digest of what a run's steps depend on, whatever their number."""
    binding = {key: inputs[key] for key in _BINDING}
    return hashlib.sha256(json.dumps(binding, sort_keys=True).encode()).hexdigest()


def check_same_run(ours: Inputs, theirs: Inputs, folder: Path) -> None:
    """See that a folder's run may go on with our inputs: they are the same, or only longer.

    Args:
        ours: what is asked for.
        theirs: what the run in the folder was started with.
        folder: the run's.

    Raises:
        ConfigError: with what differs.
    """
    holds = f"run.output_dir={folder} holds a run"
    if theirs.get("format") != FORMAT:
        raise ConfigError(
            f"{holds} of another version of versatileffn, whose checkpoints can't be resumed: "
            "finish it with that version, or start another run, in another folder, with "
            f"model.init_from={folder / 'model'} or one of its checkpoints"
        )
    free = (*_LENGTHS, "world_size")  # with other processes a run goes on, to rounding
    differing = differences(
        {key: value for key, value in ours.items() if key not in free},
        {key: theirs.get(key) for key in ours if key not in free},
    )
    if differing:
        raise ConfigError(
            f"{holds} with other settings ({'; '.join(differing)}): restore them, or choose "
            "another folder"
        )
    steps, schedule = theirs.get("steps"), theirs.get("schedule_steps")
    if (ours["steps"], ours["schedule_steps"]) == (steps, schedule):
        return
    if not isinstance(steps, int) or ours["steps"] < steps:
        raise ConfigError(
            f"{holds} of {steps} steps, and {ours['steps']} are asked for: a run can be made "
            "longer, not shorter; restore its length, or choose another folder"
        )
    if ours["schedule_steps"] != schedule:
        raise ConfigError(
            f"{holds} of {steps} steps whose learning rate and τ fall over {schedule}, and "
            f"{ours['steps']} steps over {ours['schedule_steps']} are asked for: to go on with "
            f"both as they ended, add run.schedule_steps={schedule}; for a new schedule, start "
            f"another run with model.init_from={folder / 'model'}"
        )


def differences(ours: Any, theirs: Any, path: str = "") -> list[str]:
    """Dotted keys whose values differ, as `a.b is ours, was theirs`."""
    if isinstance(ours, dict) and isinstance(theirs, dict):
        found = []
        for key in sorted(ours.keys() | theirs.keys()):
            inner = f"{path}.{key}" if path else key
            found += differences(ours.get(key), theirs.get(key), inner)
        return found
    name = path.removeprefix("config.")
    return [] if ours == theirs else [f"{name} is {ours!r}, was {theirs!r}"]
