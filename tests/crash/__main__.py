"""`python tests/crash [--case NAME] [--mode MODE] [--stride N]`: enumerate, and write the table."""

import argparse
import json
import os
import shlex
import shutil
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
    """Enumerate the chosen cases; a whole enumeration is written to results and docs."""
    parser = argparse.ArgumentParser(prog="python tests/crash", description=__doc__)
    parser.add_argument("--case", action="append", help="only this one; repeatable")
    parser.add_argument("--mode", action="append", choices=MODES, help="only this kind of loss")
    parser.add_argument("--stride", type=int, help="every so many-th point, instead of the case's")
    parser.add_argument("--write", action="store_true", help="write results and the table")
    chosen = parser.parse_args()
    began, found = time.monotonic(), []
    with tempfile.TemporaryDirectory(prefix="crash-points-") as place, Workshop(Path(place)) as shop:
        for case in all_cases(shop.inputs):
            if chosen.case and case.name not in chosen.case:
                continue
            started = time.monotonic()
            modes = tuple(chosen.mode or MODES)
            one = enumerate_crashes(case, shop.driver, modes, chosen.stride, report=print)
            found.append((one, chosen.stride or case.stride))
            print(f"{case.name}: {one.points} points, {one.states.total()} states, "
                  f"{dict(one.outcomes)}, {time.monotonic() - started:.0f} s", flush=True)  # fmt: skip
    if chosen.write:
        write([as_json(one, stride) for one, stride in found], time.monotonic() - began)
    sys.exit(any(one.failures for one, _ in found))


def as_json(found: Enumeration, stride: int) -> dict:
    """A row of results."""
    return {
        "case": found.case,
        "points": found.points,
        "stride": stride,
        "states": {mode: found.states[mode] for mode in MODES},
        "outcomes": {outcome: found.outcomes[outcome] for outcome in OUTCOMES},
        "failures": found.failures,
    }


def write(rows: list[dict], seconds: float) -> None:
    """Write results/crash-points/results.json, and the table into docs/reliability.md."""
    record = {
        "command": shlex.join(["python", "tests/crash", *sys.argv[1:]]),
        "date": datetime.now(UTC).date().isoformat(),
        "versions": versions("torch", "transformers", "tokenizers", "safetensors", "datatrove"),
        "sources_sha256": source_digest(),
        "system": f"{os.uname().sysname} {os.uname().release.split('-')[0]}",
        "seconds": round(seconds),
        "cases": rows,
    }
    RESULTS.parent.mkdir(parents=True, exist_ok=True)
    RESULTS.write_text(json.dumps(record, indent=2) + "\n")
    head, _, rest = PAGE.read_text().partition(BEGIN)
    PAGE.write_text(head + BEGIN + table(record) + END + rest.partition(END)[2])


def table(record: dict) -> str:
    """The results as Markdown."""
    lines = [
        "| command | points | states after SIGKILL | contents lost | names lost, too | mixed "
        "| continued | done before | failed |",
        "|---|---:|---:|---:|---:|---:|---:|---:|---:|",
    ]
    for row in record["cases"]:
        every = f" (1 of {row['stride']})" if row["stride"] > 1 else ""
        cells = [*row["states"].values(), *row["outcomes"].values()]
        lines.append(f"| {row['case']} | {row['points']}{every} | "
                     + " | ".join(map(str, cells)) + " |")  # fmt: skip
    made = ", ".join(f"{name} {version}" for name, version in record["versions"].items())
    return "\n".join(lines) + f"\n\n`{record['command']}`, {record['date']}; {made}.\n"


if __name__ == "__main__":
    main()
