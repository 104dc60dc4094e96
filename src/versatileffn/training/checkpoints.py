"""Checkpoints: whole or not there, and bound to their run and step."""

import re
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from versatileffn.workspace.durable import PARTIAL, rename, set_aside, sync, sync_tree, write_json
from versatileffn.workspace.manifest import damage, digests, files_of, read_record

CONTENTS = "contents.json"
STATE = "trainer_state.json"
"""What Transformers reads as it is."""
ESSENTIAL = (
    "config.json", "scheduler.pt", "trainer_state.json", "loss_window.json", "log.jsonl"
)  # fmt: skip
KINDS = {
    "weights": r"(model|weights/).*\.safetensors",
    "optimizer state": r"optimizer(\.pt|/.*\.safetensors)",
    "random states": r"rng_state.*\.pth",
}
"""What else a checkpoint holds, whole or in shares, by the names of its files."""
_NAME = re.compile(r"checkpoint-(\d+)")


@dataclass(frozen=True)
class Binding:
    """What a checkpoint belongs to.

    Args:
        run_id: of the run.
        inputs_sha256: digest of everything that the run's steps depend on.
    """

    run_id: str
    inputs_sha256: str


def step_of(checkpoint: Path) -> int:
    """Optimizer steps that were finished when `checkpoint` was written."""
    match = _NAME.fullmatch(checkpoint.name)
    if match is None:
        raise ValueError(f"{checkpoint} is not named checkpoint-<step>")
    return int(match.group(1))


def complete_checkpoints(folder: Path) -> list[Path]:
    """The checkpoints in `folder`, oldest first.

    Half-written ones never carry their final name, see `commit`.
    """
    if not folder.is_dir():
        return []
    return sorted((p for p in folder.iterdir() if _NAME.fullmatch(p.name)), key=step_of)


def contents(checkpoint: Path) -> dict[str, Any] | None:
    """What a checkpoint says of itself; None where that is missing or damaged."""
    return read_record(checkpoint / CONTENTS)


def commit(partial: Path, final: Path, binding: Binding) -> None:
    """Seal a written checkpoint, have it on disk, and give it its final name, which nothing has."""
    write_json(
        partial / CONTENTS,
        {
            "run_id": binding.run_id,
            "inputs_sha256": binding.inputs_sha256,
            "step": step_of(final),
            "files": digests(partial, without=[CONTENTS]),
        },
    )
    sync_tree(partial)
    rename(partial, final)


def fault(checkpoint: Path, binding: Binding) -> str | None:
    """Why a run can't resume from a checkpoint; None where it can. All its files are read."""
    record = contents(checkpoint)
    files = files_of(record)
    if record is None or files is None:
        return f"{CONTENTS} is missing or isn't what was written"
    missing = [name for name in ESSENTIAL if name not in files]
    for kind, pattern in KINDS.items():
        missing += [] if any(re.fullmatch(pattern, name) for name in files) else [kind]
    if missing:
        return f"{CONTENTS} doesn't list {missing[0]}"
    if (record.get("run_id"), record.get("inputs_sha256")) != (
        binding.run_id,
        binding.inputs_sha256,
    ):
        return "it is another run's"
    if record.get("step") != step_of(checkpoint):
        return f"it is of step {record.get('step')}"
    found = next(iter(damage(checkpoint, files)), None)
    if found is None and read_record(checkpoint / STATE) is None:
        return f"{STATE} isn't what Transformers writes"
    return found


def newest_whole(folder: Path, binding: Binding) -> tuple[Path | None, dict[Path, str]]:
    """The newest checkpoint that a run can resume from, and why newer ones can't serve."""
    faults: dict[Path, str] = {}
    for checkpoint in reversed(complete_checkpoints(folder)):
        reason = fault(checkpoint, binding)
        if reason is None:
            return checkpoint, faults
        faults[checkpoint] = reason
    return None, faults


def reject(checkpoint: Path) -> Path:
    """Rename a checkpoint that can't serve, so that its step can be saved again; its new path."""
    return set_aside(checkpoint, checkpoint.with_name(f"rejected-{checkpoint.name}"))


def prune(folder: Path, keep: int) -> None:
    """Delete all but the newest `keep` checkpoints, each renamed away before it is taken apart."""
    for checkpoint in complete_checkpoints(folder)[:-keep]:
        doomed = checkpoint.with_name(f"{PARTIAL}-{checkpoint.name}")
        rename(checkpoint, doomed)
        shutil.rmtree(doomed)
    sync(folder)


def leftovers(folder: Path) -> list[Path]:
    """What an interruption left half-written, or half-deleted, among the checkpoints."""
    return [folder / PARTIAL, *folder.glob(f"{PARTIAL}-checkpoint-*")]
