"""Stages: folders that know which inputs they were made from, so that a rerun skips or resumes.

A stage's hash covers its own inputs, this package's sources, the versions of the libraries, and the
hashes of the stages it needs. Its folder holds
`inputs.json` from the moment the work starts and `stage.json`, written last and by rename, once it
is complete. A folder made from other inputs is moved to `superseded/`, never deleted.
"""

import functools
import hashlib
import json
import shutil
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from versatileffn.errors import ConfigError
from versatileffn.files import locked, write_json, writing
from versatileffn.provenance import source_digest, versions

MARKER = "reproduce.json"
LIBRARIES = ("torch", "transformers", "accelerate", "tokenizers", "datatrove", "numpy")


@dataclass(frozen=True)
class Stage:
    """One step of an experiment.

    Args:
        name: folder below the output folder, e.g. `seed-0/4-loop/train`.
        title: what a person reads in the progress lines.
        inputs: everything that decides the result, as JSON-able data.
        work: does the step. Gets the stage's folder, returns a JSON-able summary.
        needs: names of the stages whose results this one reads.
        produces: files, relative to the folder, without which the stage isn't finished.
        resumes: whether `work` continues from what an interrupted attempt left in the folder;
            otherwise the folder is emptied before the work starts again.
        effort: expected work in any unit common to all stages; feeds the time left.
    """

    name: str
    title: str
    inputs: dict[str, Any]
    work: Callable[[Path], dict[str, Any]]
    needs: tuple[str, ...] = ()
    produces: tuple[str, ...] = ()
    resumes: bool = False
    effort: float = 1.0


@dataclass
class Outcome:
    """What running one stage came to."""

    stage: Stage
    hash: str
    summary: dict[str, Any]
    seconds: float
    skipped: bool


@dataclass
class StageRunner:
    """Runs stages in order below one folder, skipping what is already there.

    Args:
        root: the output folder; new, empty, or one that an earlier run made.
        report: called with (stage, position from 1, total, share of the effort done, event),
            event being `start`, `skip`, `resume` or `done`.
    """

    root: Path
    report: Callable[[Stage, int, int, str, float], None] = lambda *_: None
    outcomes: dict[str, Outcome] = field(default_factory=dict)

    def run(self, stages: list[Stage]) -> dict[str, Outcome]:
        """Run or skip every stage.

        Args:
            stages: in an order where each stage comes after those it needs.

        Returns:
            Outcomes by stage name.

        Raises:
            ConfigError: the output folder holds something else, or another run is using it.
        """
        claim(self.root)
        with locked(self.root, str(self.root)):
            for position, stage in enumerate(stages, start=1):
                self.outcomes[stage.name] = self._run_one(stage, position, len(stages))
        return self.outcomes

    def _run_one(self, stage: Stage, position: int, total: int) -> Outcome:
        folder = self.root / stage.name
        needed = {name: self.outcomes[name].hash for name in stage.needs}
        inputs = {
            "source": sources(),
            "versions": versions(*LIBRARIES),
            "inputs": stage.inputs,
            "needs": needed,
        }
        digest = canonical_hash(inputs)
        finished = read_json(folder / "stage.json")
        if finished and finished.get("hash") == digest:
            if all((folder / name).exists() for name in stage.produces):
                summary, seconds = finished["summary"], finished["seconds"]
                self.report(stage, position, total, "skip", seconds)
                return Outcome(stage, digest, summary, seconds, skipped=True)
            set_aside(self.root, folder, digest)  # someone took parts of it away
        resumed = self._prepare(stage, folder, digest, inputs)
        self.report(stage, position, total, "resume" if resumed else "start", 0.0)
        started = time.monotonic()
        summary = stage.work(folder)
        seconds = time.monotonic() - started
        write_json(
            folder / "stage.json",
            {"hash": digest, "seconds": seconds, "resumed": resumed, "summary": summary},
        )
        self.report(stage, position, total, "done", seconds)
        return Outcome(stage, digest, summary, seconds, skipped=False)

    def _prepare(self, stage: Stage, folder: Path, digest: str, inputs: dict[str, Any]) -> bool:
        """Bring the folder into a state to work in; whether it continues an earlier attempt."""
        begun = read_json(folder / "inputs.json")
        if begun and begun.get("hash") == digest:
            if stage.resumes:
                return True
            shutil.rmtree(folder)
        elif folder.exists() and any(folder.iterdir()):
            set_aside(self.root, folder, begun.get("hash", "unknown") if begun else "unknown")
        folder.mkdir(parents=True, exist_ok=True)
        write_json(folder / "inputs.json", {"hash": digest, **inputs})
        return False


@functools.cache
def sources() -> str:
    """Digest of this package's source files, as they are when it is first asked for."""
    return source_digest()


def claim(root: Path) -> None:
    """Make the output folder ours, or refuse one that holds something else.

    Raises:
        ConfigError: the folder is not empty and no earlier run made it, or it is a file.
    """
    with writing(root):
        if root.is_file():
            raise ConfigError(f"{root} is a file: choose a folder for the results")
        if root.is_dir() and any(root.iterdir()) and not (root / MARKER).exists():
            raise ConfigError(
                f"{root} is not empty and holds no earlier reproduction: choose a new folder; "
                "nothing was changed"
            )
        root.mkdir(parents=True, exist_ok=True)
        if not (root / MARKER).exists():
            write_json(root / MARKER, {"format": 1, "made_by": "versatileffn reproduce"})


def set_aside(root: Path, folder: Path, old_hash: str) -> Path:
    """Move a folder made from other inputs to `superseded/`; where it went."""
    name = folder.relative_to(root).as_posix().replace("/", "--")
    attempt = 0
    while True:
        target = root / "superseded" / f"{name}-{old_hash[:8]}{f'-{attempt}' if attempt else ''}"
        if not target.exists():
            break
        attempt += 1
    target.parent.mkdir(exist_ok=True)
    folder.rename(target)
    return target


def canonical_hash(value: Any) -> str:
    """SHA-256 of a JSON-able value, independent of key order."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()


def read_json(path: Path) -> dict[str, Any] | None:
    """The object in a JSON file, or None where there is none, or it is damaged."""
    try:
        content = json.loads(path.read_text())
    except (FileNotFoundError, ValueError):
        return None
    return content if isinstance(content, dict) else None
