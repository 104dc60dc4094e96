"""`python tests/planning [--write]`: planned memory against measured, in every mode."""

import argparse
import json
import shlex
import sys
import tempfile
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve()
ROOT = HERE.parents[2]
sys.path[:0] = [str(HERE.parents[1]), str(ROOT / "src")]

from planning.cases import WITHIN, all_cases, compare  # noqa: E402
from versatileffn.provenance import source_digest, versions  # noqa: E402

RESULTS = ROOT / "results" / "plan-memory" / "results.json"
PAGE = ROOT / "docs" / "plan.md"
BEGIN, END = "<!-- table: python tests/planning -->\n", "<!-- end of table -->\n"
MODES = (("auto", False), ("masked", False), ("packed", False), ("recompute", False),
         ("auto", True), ("masked", True), ("packed", True), ("recompute", True))  # fmt: skip


def table(rows: list[dict[str, Any]]) -> str:
    """Planned over measured, as Markdown: float32, bfloat16."""
    variants = list(dict.fromkeys(row["variant"] for row in rows))
    lines = ["| execution | " + " | ".join(variants) + " |", "|---|" + "---|" * len(variants)]
    known = {
        (r["variant"], r["execution"], r["gradient_checkpointing"], r["bf16"]): r["ratio"]
        for r in rows
    }
    for execution, again in MODES:
        cells = []
        for variant in variants:
            pair = [known.get((variant, execution, again, bf16)) for bf16 in (False, True)]
            cells.append("–" if None in pair else ", ".join(f"{ratio:.3f}" for ratio in pair))
        name = f"`{execution}`" + (", checkpointing" if again else "")
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def main() -> None:
    """Compare all, and say by the exit code whether they agree."""
    parser = argparse.ArgumentParser(prog="python tests/planning", description=__doc__)
    parser.add_argument("--write", action="store_true", help="write results and the page's table")
    chosen = parser.parse_args()
    rows = []
    with tempfile.TemporaryDirectory(prefix="plan-memory-") as place:
        for case in all_cases():
            rows.append(compare(case, Path(place)))
            print(f"{case}: planned / measured = {rows[-1]['ratio']:.4f}", flush=True)
    record = {
        "command": shlex.join(["python", "tests/planning", *sys.argv[1:]]),
        "date": datetime.now(UTC).date().isoformat(),
        "versions": versions("torch", "transformers", "accelerate"),
        "sources_sha256": source_digest(),
        "within": WITHIN,
        "rows": rows,
    }
    if chosen.write:
        RESULTS.parent.mkdir(parents=True, exist_ok=True)
        RESULTS.write_text(json.dumps(record, indent=2) + "\n")
        head, _, rest = PAGE.read_text().partition(BEGIN)
        PAGE.write_text(head + BEGIN + table(rows) + END + rest.partition(END)[2])
    sys.exit(any(abs(row["ratio"] - 1) > WITHIN for row in rows))


if __name__ == "__main__":
    main()
