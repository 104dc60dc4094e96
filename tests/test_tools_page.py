"""docs/tools.md's table is what the walk through other people's tools wrote down."""

import json
import re
import tomllib
from pathlib import Path

from portable.trainers import TOOLS

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "docs" / "tools.md").read_text(encoding="utf-8")
ROWS = json.loads((ROOT / "docs" / "tools.json").read_text(encoding="utf-8"))


def test_the_table_is_what_was_written_down():
    table = PAGE.partition("| tool |")[2].split("\n\n")[0].splitlines()[2:]
    assert table == [f"| `{r['tool']}` | {r['version']} | {r['outcome']} |" for r in ROWS]


def test_the_oldest_supported_transformers_was_walked():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    wanted = next(d for d in project["dependencies"] if d.startswith("transformers"))
    oldest = re.search(r">=([\d.]+)", wanted).group(1)
    walked = {row["version"] for row in ROWS if row["tool"] == "Auto classes"}
    assert any(version.startswith(f"{oldest}.") for version in walked)
    assert len(walked) > 1


def test_trainers_were_walked():
    assert {row["tool"] for row in ROWS} >= set(TOOLS)


def test_every_tool_is_shown_beside_the_table():
    told = PAGE.replace(PAGE.partition("| tool |")[2].split("\n\n")[0], "")
    for words in {row["tool"] for row in ROWS} - {"Auto classes"}:
        assert re.search(rf"(^|`){re.escape(words)}\b", told, re.MULTILINE), words
