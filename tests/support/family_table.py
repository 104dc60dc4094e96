"""docs/families.md: its table shows what a run of tests/models/test_families.py found."""

import ast
import json
from pathlib import Path

from versatileffn.models.table import FAMILIES, Family

DOCS = Path(__file__).parents[2] / "docs"
BEGIN, END = "<!-- from docs/families.json -->\n", "<!-- end -->\n"
MARKS = {"passed": "✓", "failed": "**no**", "error": "**no**", "skipped": "–"}


def write(record: dict) -> None:
    """The record of a run, and the page's table of it."""
    (DOCS / "families.json").write_text(json.dumps(record, indent=1) + "\n", "utf-8")
    before, _, rest = (DOCS / "families.md").read_text("utf-8").partition(BEGIN)
    after = rest.partition(END)[2]
    (DOCS / "families.md").write_text(before + BEGIN + render(record) + END + after, "utf-8")


def render(record: dict) -> str:
    """The table of a record."""
    names = list(dict.fromkeys(test for found in record["families"].values() for test in found))
    rows = [["family", "norms", *(name.replace("_", " ") for name in names)]]
    rows.append(["---"] * 2 + [":-:"] * len(names))
    for model_type, found in record["families"].items():
        marks = [MARKS[found[name]] for name in names]
        rows.append([f"`{model_type}`", norms(FAMILIES[model_type]), *marks])
    table = "".join(f"| {' | '.join(row)} |\n" for row in rows)
    return f"With {record['versions']}:\n\n{table}"


def norms(family: Family) -> str:
    """Where a family's norms stand around the FFN."""
    places = {"before": family.norm, "after": family.post_norm}
    said = " and ".join(place for place, name in places.items() if name is not None)
    beside = {True: "attention's", False: f"{said}, or attention's"}
    return beside[family.parallel] if family.shared_norm is not None else said


def properties(module: Path) -> list[str]:
    """What a module of tests tests, in its order."""
    names = (getattr(node, "name", "") for node in ast.parse(module.read_text("utf-8")).body)
    return [name.removeprefix("test_") for name in names if name.startswith("test_")]
