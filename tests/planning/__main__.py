"""`python tests/planning [--write]`: planned memory against measured, in every mode."""

import argparse
import dataclasses
import json
import shlex
import sys
import tempfile
from datetime import UTC, datetime
from itertools import product
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve()
ROOT = HERE.parents[2]
sys.path[:0] = [str(HERE.parents[1]), str(ROOT / "src")]

from planning.cases import VARIANTS, WITHIN, Case, all_cases, compare  # noqa: E402
from versatileffn.planning.plan import EXECUTIONS  # noqa: E402
from versatileffn.provenance import source_digest, versions  # noqa: E402

RESULTS = ROOT / "results" / "plan-memory" / "results.json"
PAGE = ROOT / "docs" / "plan.md"
BEGIN, END = "<!-- table: python tests/planning -->\n", "<!-- end of table -->\n"


def table(rows: list[dict[str, Any]]) -> str:
    """Planned over measured, as Markdown: float32, bfloat16."""
    known = {case_of(row): row["ratio"] for row in rows}
    lines = ["| execution | " + " | ".join(VARIANTS) + " |", "|---|" + "---|" * len(VARIANTS)]
    for again, execution in product((False, True), EXECUTIONS):
        cells = [_pair(known, Case(variant, execution, again, False)) for variant in VARIANTS]
        lines.append(f"| {_name(execution, again)} | " + " | ".join(cells) + " |")
    for strategy, again in product(("ddp", "fsdp2"), (False, True)):
        cells = [
            _pair(known, Case(variant, "auto", again, False, 2, strategy)) for variant in VARIANTS
        ]
        name = _name("auto", again) + f", 2 processes, {strategy}"
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def _name(execution: str, again: bool) -> str:
    return f"`{execution}`" + (", checkpointing" if again else "")


def _pair(known: dict[Case, float], case: Case) -> str:
    ratios = [known.get(dataclasses.replace(case, bf16=bf16)) for bf16 in (False, True)]
    return "–" if None in ratios else ", ".join(f"{ratio:.3f}" for ratio in ratios)


def main() -> None:
    """Compare the chosen cases, and say by the exit code whether they agree."""
    parser = argparse.ArgumentParser(prog="python tests/planning", description=__doc__)
    parser.add_argument("--case", action="append", help="only this one; repeatable")
    parser.add_argument("--write", action="store_true", help="write results and the page's table")
    chosen = parser.parse_args()
    wrong = False
    with tempfile.TemporaryDirectory(prefix="plan-memory-") as place:
        for case in all_cases():
            if chosen.case and str(case) not in chosen.case:
                continue
            row = compare(case, Path(place)) | {
                "command": shlex.join(["python", "tests/planning", *sys.argv[1:]]),
                "date": datetime.now(UTC).date().isoformat(),
                "versions": versions("torch", "transformers", "accelerate"),
                "sources_sha256": source_digest(),
            }
            print(f"{case}: planned / measured = {row['ratio']:.4f}", flush=True)
            wrong |= abs(row["ratio"] - 1) > WITHIN
            if chosen.write:
                write(case, row)
    sys.exit(wrong)


def write(case: Case, row: dict[str, Any]) -> None:
    """Put a row into the results, and into the page's table."""
    rows = json.loads(RESULTS.read_text()) if RESULTS.exists() else []
    cases = list(all_cases())
    rows = [old for old in rows if case_of(old) != case] + [row]
    rows.sort(key=lambda one: cases.index(case_of(one)))
    RESULTS.parent.mkdir(parents=True, exist_ok=True)
    RESULTS.write_text(json.dumps(rows, indent=2) + "\n")
    head, _, rest = PAGE.read_text().partition(BEGIN)
    PAGE.write_text(head + BEGIN + table(rows) + END + rest.partition(END)[2])


def case_of(row: dict[str, Any]) -> Case:
    """Which case a row is of."""
    return Case(**{field.name: row[field.name] for field in dataclasses.fields(Case)})


if __name__ == "__main__":
    main()
