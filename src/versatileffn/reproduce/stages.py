"""Stages: folders that know what they were made from and what they hold, so a rerun skips them.

A stage's hash covers its own inputs, this package's sources, the versions of the libraries, and the
hashes and contents of the stages it needs. Its folder holds `inputs.json` from the moment the work
starts and `stage.json`, written last, with the SHA-256 of `inputs.json` and of every file that it
produced. A finished stage is skipped only if these files are still what was written. A folder that
isn't taken as it is moves to `superseded/`; nothing is ever deleted.
"""

import functools
import hashlib
import json
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from versatileffn.provenance import source_digest, versions
from versatileffn.workspace import folder as workspace
from versatileffn.workspace.durable import beside, make_folder, set_aside, write_json, writing
from versatileffn.workspace.manifest import FILES, damage, digests, files_of, read_record, sha256

MARKER, INPUTS = "reproduce.json", "inputs.json"
LIBRARIES = ("torch", "transformers", "accelerate", "tokenizers", "numpy", "scipy")


@dataclass(frozen=True)
class Stage:
    """One step of an experiment.

    Args:
        name: folder below the output folder, e.g. `seed-0/4-loop/train`.
        title: what a person reads in the progress lines.
        inputs: everything that decides the result, as JSON-able data.
        work: does the step. Gets the stage's folder, in which an interrupted attempt with the same
            inputs may have left something to go on with; returns a JSON-able summary.
        needs: names of the stages whose results this one reads.
        produces: files and folders, relative to the stage's, that later stages read.
        effort: expected work in any unit common to all stages; feeds the time left.
    """

    name: str
    title: str
    inputs: dict[str, Any]
    work: Callable[[Path], dict[str, Any]]
    needs: tuple[str, ...] = ()
    produces: tuple[str, ...] = ()
    effort: float = 1.0


@dataclass
class Outcome:
    """What running one stage came to; `files` are the digests in its record, `source` is the
    digest of the sources that ran it."""

    stage: Stage
    hash: str
    summary: dict[str, Any]
    files: dict[str, str]
    seconds: float
    skipped: bool
    source: str


Report = Callable[[Stage, int, int, str, float], None]


@contextmanager
def held(root: Path) -> Iterator[None]:
    """Make the output folder ours, and keep other runs out of it.

    Args:
        root: new, empty, or one that an earlier run made.

    Raises:
        ConfigError: the folder holds something else, or another run is using it.
    """
    with workspace.held(root, MARKER, "earlier reproduction"):
        if not (root / MARKER).exists():
            with writing(root):
                write_json(root / MARKER, {"format": 2, "made_by": "versatileffn reproduce"})
        yield


@dataclass
class StageRunner:
    """Runs stages in order below one folder that is `held`, skipping what is already there.

    Args:
        root: the output folder.
        report: called with (stage, position from 1, total, event, seconds), event being `start`,
            `skip`, `resume`, `damaged` or `done`.
        accept: digests of other sources of this package, whose finished stages are as good as ours.
        only_finished: run nothing: take what is there.
    """

    root: Path
    report: Report = lambda *_: None
    outcomes: dict[str, Outcome] = field(default_factory=dict)
    accept: Sequence[str] = ()
    only_finished: bool = False

    def run(self, stages: list[Stage]) -> dict[str, Outcome]:
        """Run or skip every stage.

        Args:
            stages: in an order where each stage comes after those it needs.

        Returns:
            Outcomes by stage name; with `only_finished`, of those alone.
        """
        for position, stage in enumerate(stages, start=1):
            report = functools.partial(self.report, stage, position, len(stages))
            outcome = self._run_one(stage, report)
            if outcome is not None:
                self.outcomes[stage.name] = outcome
        return self.outcomes

    def _run_one(self, stage: Stage, report: Callable[[str, float], None]) -> Outcome | None:
        folder = self.root / stage.name
        if any(name not in self.outcomes for name in stage.needs):
            return None  # nor is what it needs finished
        inputs = self._inputs(stage, sources())
        digest = canonical_hash(inputs)
        for source in (sources(), *self.accept):
            finished = self._finished(stage, folder, source, report)
            if finished is not None:
                report("skip", finished.seconds)
                return finished
        if self.only_finished:
            return None
        with writing(folder):
            resumed = self._prepare(folder, digest, inputs)
        report("resume" if resumed else "start", 0.0)
        started = time.monotonic()
        summary = stage.work(folder)
        seconds = time.monotonic() - started
        files = product_digests(folder, (INPUTS, *stage.produces))
        record = {"hash": digest, "seconds": seconds, "resumed": resumed, "summary": summary}
        with writing(folder):
            write_json(folder / "stage.json", {**record, FILES: files})
        report("done", seconds)
        return Outcome(stage, digest, summary, files, seconds, False, sources())

    def _inputs(self, stage: Stage, source: str) -> dict[str, Any]:
        """All that decides what a stage makes, with these sources."""
        needed = [self.outcomes[name] for name in stage.needs]
        return {
            "source": source,
            "versions": versions(*LIBRARIES),
            "inputs": stage.inputs,
            "needs": {o.stage.name: canonical_hash([o.hash, o.files]) for o in needed},
        }

    def _finished(
        self, stage: Stage, folder: Path, source: str, report: Callable[[str, float], None]
    ) -> Outcome | None:
        """What an earlier run finished with the same inputs; set aside if it has changed since."""
        digest = canonical_hash(self._inputs(stage, source))
        record = read_record(folder / "stage.json")
        if record is None or record.get("hash") != digest:
            return None
        files = files_of(record)
        if files is None or damage(folder, files):
            report("damaged", 0.0)
            if not self.only_finished:
                self._set_aside(folder, digest)
            return None
        return Outcome(stage, digest, record["summary"], files, record["seconds"], True, source)

    def _prepare(self, folder: Path, digest: str, inputs: dict[str, Any]) -> bool:
        """Bring the folder into a state to work in; whether it continues an earlier attempt."""
        begun = read_record(folder / INPUTS)
        if begun and begun.get("hash") == digest:
            return True
        unfinished = beside(Path(INPUTS)).name  # of a crash while the record below was written
        if folder.exists() and any(child.name != unfinished for child in folder.iterdir()):
            self._set_aside(folder, begun.get("hash", "unknown") if begun else "unknown")
        make_folder(folder)
        write_json(folder / INPUTS, {"hash": digest, **inputs})
        return False

    def _set_aside(self, folder: Path, old_hash: str) -> None:
        """Move a folder that isn't taken as it is to `superseded/`."""
        name = folder.relative_to(self.root).as_posix().replace("/", "--")
        set_aside(folder, self.root / "superseded" / f"{name}-{old_hash[:8]}")


@functools.cache
def sources() -> str:
    """Digest of this package's source files, as they are when it is first asked for."""
    return source_digest()


def product_digests(folder: Path, produces: tuple[str, ...]) -> dict[str, str]:
    """SHA-256 of each file that a stage produced, by its path in the stage's folder."""
    found: dict[str, str] = {}
    for name in produces:
        path = folder / name
        if path.is_dir():
            found |= {f"{name}/{inner}": digest for inner, digest in digests(path).items()}
        elif path.is_file():
            found[name] = sha256(path)
    return found


def canonical_hash(value: Any) -> str:
    """SHA-256 of a JSON-able value, independent of key order."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()
