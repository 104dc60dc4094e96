"""`python tests/crash [--case NAME] [--mode MODE] [--stride N]`: enumerate, and write the table."""

import argparse
import functools
import importlib.util
import json
import os
import shlex
import sys
import tempfile
import time
from datetime import UTC, datetime
from pathlib import Path

HERE = Path(__file__).resolve()
ROOT = HERE.parents[2]
sys.path[:0] = [str(HERE.parents[1]), str(ROOT / "src")]

from crash.cases import all_cases  # noqa: E402
from crash.disk import MODES  # noqa: E402
from crash.enumerate import OUTCOMES, Enumeration, enumerate_crashes  # noqa: E402
from crash.workshop import Workshop  # noqa: E402
from versatileffn.provenance import source_digest, versions  # noqa: E402

RESULTS = ROOT / "results" / "crash-points" / "results.json"
PAGE = ROOT / "docs" / "reliability.md"
BEGIN, END = "<!-- table: python tests/crash -->\n", "<!-- end of table -->\n"


def main() -> None:
    """Enumerate the chosen cases, one after the other."""
    parser = argparse.ArgumentParser(prog="python tests/crash", description=__doc__)
    parser.add_argument("--case", action="append", help="only this one; repeatable")
    parser.add_argument("--mode", action="append", choices=MODES, help="only this kind of loss")
    parser.add_argument("--stride", type=int, default=1, help="every so many-th point")
    parser.add_argument("--write", action="store_true", help="write results and the table")
    chosen = parser.parse_args()
    failed = False
    with (
        tempfile.TemporaryDirectory(prefix="crash-points-") as place,
        Workshop(Path(place)) as shop,
    ):
        for case in all_cases(shop.inputs):
            if chosen.case and case.name not in chosen.case:
                continue
            if not importlib.util.find_spec(case.needs):
                print(f"{case.name}: left out, for there is no {case.needs}")
                continue
            began, stride = time.monotonic(), chosen.stride
            modes = tuple(chosen.mode or MODES)
            found = enumerate_crashes(
                case, shop.driver, modes, stride, report=functools.partial(print, flush=True)
            )
            row = as_json(found, stride, time.monotonic() - began)
            print(row | {"failures": len(found.failures)}, flush=True)
            failed |= bool(found.failures)
            if chosen.write:
                write(row)
    sys.exit(failed)


def as_json(found: Enumeration, stride: int, seconds: float) -> dict:
    """A row of results, with what it was made by."""
    packages = ("torch", "transformers", "tokenizers", "safetensors")
    return {
        "case": found.case,
        "points": found.points,
        "stride": stride,
        "states": {mode: found.states[mode] for mode in MODES},
        "outcomes": {outcome: found.outcomes[outcome] for outcome in OUTCOMES},
        "failures": found.failures,
        "command": shlex.join(["python", "tests/crash", *sys.argv[1:]]),
        "date": datetime.now(UTC).date().isoformat(),
        "seconds": round(seconds),
        "system": f"{os.uname().sysname} {os.uname().release.split('-')[0]}",
        "versions": versions(*packages),
        "sources_sha256": source_digest(),
    }


def write(row: dict) -> None:
    """Put a row into results/crash-points/results.json, and into the table of the page."""
    rows = json.loads(RESULTS.read_text()) if RESULTS.exists() else []
    names = [case.name for case in all_cases(Path())]
    rows = [old for old in rows if old["case"] != row["case"] and old["case"] in names] + [row]
    rows.sort(key=lambda one: names.index(one["case"]))
    RESULTS.parent.mkdir(parents=True, exist_ok=True)
    RESULTS.write_text(json.dumps(rows, indent=2) + "\n")
    head, _, rest = PAGE.read_text().partition(BEGIN)
    PAGE.write_text(head + BEGIN + table(rows) + END + rest.partition(END)[2])


def table(rows: list[dict]) -> str:
    """The results as Markdown."""
    lines = [
        "| command | points | SIGKILL | contents lost | names lost, too | mixed | continued "
        "| done before | failed |",
        "|---|---:|---:|---:|---:|---:|---:|---:|---:|",
    ]
    for row in rows:
        every = f", 1 in {row['stride']} tried" if row["stride"] > 1 else ""
        cells = [f"{row['points']}{every}", *row["states"].values(), *row["outcomes"].values()]
        lines.append(f"| `{row['case']}` | " + " | ".join(map(str, cells)) + " |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
