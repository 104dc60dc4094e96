"""Results as JSON, and as the tables of docs/reliability.md."""

import json
import os
import shlex
import sys
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from crash.cases import all_cases
from crash.damage import ENDS, KINDS, Damages
from crash.disk import MODES
from crash.enumerate import OUTCOMES, Enumeration
from crash.enumerate_faults import DIED, SAID, WENT_ON, Faults
from crash.faults import FAULTS
from versatileffn.provenance import source_digest, versions

ROOT = Path(__file__).resolve().parents[2]
PAGE = ROOT / "docs" / "reliability.md"


@dataclass(frozen=True)
class Table:
    """A committed results file and what the page shows of it.

    Args:
        file: of the results, a list with a row for each case.
        command: that makes it, as it stands in the page's mark.
        shown: the rows as Markdown.
    """

    file: Path
    command: str
    shown: Callable[[list[dict]], str]

    def marks(self) -> tuple[str, str]:
        """The lines of the page between which the table stands."""
        return f"<!-- table: {self.command} -->\n", "<!-- end of table -->\n"

    def rows(self) -> list[dict]:
        """What is committed."""
        rows: list[dict] = json.loads(self.file.read_text()) if self.file.exists() else []
        return rows

    def write(self, row: dict) -> None:
        """Put a row, with what it was made by, into the file and into the page."""
        names = [case.name for case in all_cases(Path())]
        rows = [old for old in self.rows() if old["case"] != row["case"] and old["case"] in names]
        rows = sorted([*rows, row], key=lambda one: names.index(one["case"]))
        self.file.parent.mkdir(parents=True, exist_ok=True)
        self.file.write_text(json.dumps(rows, indent=2) + "\n")
        begin, end = self.marks()
        head, _, rest = PAGE.read_text().partition(begin)
        PAGE.write_text(head + begin + self.shown(rows) + end + rest.partition(end)[2])


def made_by(seconds: float) -> dict:
    """What a row was made by, where and how long."""
    packages = ("torch", "transformers", "tokenizers", "safetensors", "datatrove")
    return {
        "command": shlex.join(["python", "tests/crash", *sys.argv[1:]]),
        "date": datetime.now(UTC).date().isoformat(),
        "seconds": round(seconds),
        "system": f"{os.uname().sysname} {os.uname().release.split('-')[0]}",
        "versions": versions(*packages),
        "sources_sha256": source_digest(),
    }


def crash_row(found: Enumeration, stride: int) -> dict:
    """What came of the crashes of a case."""
    return {
        "case": found.case,
        "points": found.points,
        "stride": stride,
        "states": {mode: found.states[mode] for mode in MODES},
        "outcomes": {outcome: found.outcomes[outcome] for outcome in OUTCOMES},
        "failures": found.failures,
    }


def fault_row(found: Faults, stride: int, allocation_stride: int) -> dict:
    """What came of the faults of a case."""
    return {
        "case": found.case,
        "stride": stride,
        "allocation_stride": allocation_stride,
        "points": dict(found.points),
        "ends": {name: dict(ends) for name, ends in found.ends.items()},
        "again": dict(found.again),
        "failures": found.failures,
    }


def damage_row(found: Damages, stride: int, step: int) -> dict:
    """What came of the damages of a case."""
    return {
        "case": found.case,
        "stride": stride,
        "byte_stride": step,
        "files": found.files,
        "ends": {kind: dict(ends) for kind, ends in found.ends.items()},
        "failures": found.failures,
    }


def crash_table(rows: list[dict]) -> str:
    """Crashes as Markdown."""
    lines = [
        "| command | points | SIGKILL | contents lost | names lost, too | mixed | continued "
        "| done before | failed |",
        "|---|---:|---:|---:|---:|---:|---:|---:|---:|",
    ]
    for row in rows:
        points = f"{row['points']}{_every(row['stride'])}"
        cells = [points, *row["states"].values(), *row["outcomes"].values()]
        lines.append(f"| `{row['case']}` | " + " | ".join(map(str, cells)) + " |")
    return "\n".join(lines) + "\n"


def fault_table(rows: list[dict]) -> str:
    """Faults as Markdown: of each kind, how often the command said so and how often it went on."""
    names = [fault.name for fault in FAULTS]
    lines = [
        f"| command | tried | {' | '.join(names)} | given again | failed |",
        "|---|---|" + "---:|" * (len(names) + 2),
    ]
    for row in rows:
        points, allocations = row["stride"], row["allocation_stride"]
        tried = f"{_share(points)} of the points, {_share(allocations)} of the allocations"
        cells = [tried, *(_ends(row["ends"].get(name, {})) for name in names)]
        cells += [str(sum(row["again"].values())), str(len(row["failures"]))]
        lines.append(f"| `{row['case']}` | " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def damage_table(rows: list[dict]) -> str:
    """Damages as Markdown: of each kind, how often it was redone, unused and refused."""
    lines = [
        f"| command | files | tried | {' | '.join(KINDS)} | failed |",
        "|---|---:|---|" + "---:|" * (len(KINDS) + 1),
    ]
    for row in rows:
        every = f"{_share(row['stride'])}, bytes {row['byte_stride']} apart"
        cells = [str(row["files"]), every]
        for kind in KINDS:
            cells.append(" / ".join(str(row["ends"][kind].get(end, 0)) for end in ENDS))
        cells.append(str(len(row["failures"])))
        lines.append(f"| `{row['case']}` | " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def _ends(ends: dict[str, int]) -> str:
    said, went_on, died = (ends.get(end, 0) for end in (SAID, WENT_ON, DIED))
    return f"{said} / {went_on}" + (f" / {died}" if died else "")


def _share(stride: int) -> str:
    return f"1 in {stride}" if stride > 1 else "all"


def _every(stride: int) -> str:
    return f", 1 in {stride} tried" if stride > 1 else ""


RESULTS = ROOT / "results" / "crash-points"
CRASHES = Table(RESULTS / "results.json", "python tests/crash", crash_table)
FAILING = Table(RESULTS / "faults.json", "python tests/crash --faults", fault_table)
DAMAGED = Table(RESULTS / "damage.json", "python tests/crash --damage", damage_table)
