"""The page says what the committed results say, and they say that nothing is lost."""

import json
import runpy
from pathlib import Path

from crash.cases import all_cases

MAIN = runpy.run_path(str(Path(__file__).with_name("__main__.py")), run_name="table")


def test_the_page_shows_the_results_of_every_case() -> None:
    rows = json.loads(MAIN["RESULTS"].read_text())
    assert MAIN["table"](rows) in MAIN["PAGE"].read_text()
    assert [row["case"] for row in rows] == [case.name for case in all_cases(Path())]


def test_no_crash_lost_anything() -> None:
    for row in json.loads(MAIN["RESULTS"].read_text()):
        outcomes = row["outcomes"]
        assert row["failures"] == []
        assert outcomes["failed"] == 0
        assert sum(outcomes.values()) == sum(row["states"].values()) > 0
