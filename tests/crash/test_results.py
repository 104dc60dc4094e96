"""The page says what the committed results say, and they say that nothing is lost."""

from pathlib import Path

import pytest

from crash.cases import all_cases
from crash.enumerate_faults import DIED
from crash.faults import NO_MEMORY
from crash.tables import CRASHES, DAMAGED, FAILING, PAGE, Table


@pytest.mark.parametrize("table", [CRASHES, FAILING, DAMAGED], ids=lambda table: table.file.stem)
def test_the_page_shows_the_results(table: Table) -> None:
    begin, end = table.marks()
    assert f"{begin}{table.shown(table.rows())}{end}" in PAGE.read_text()


def test_crashes_were_tried_of_every_case() -> None:
    assert [row["case"] for row in CRASHES.rows()] == [case.name for case in all_cases(Path())]


def test_no_fault_lost_anything() -> None:
    assert FAILING.rows()
    for row in FAILING.rows():
        assert row["failures"] == []
        assert "failed" not in row["again"]
        tried = sum(sum(ends.values()) for ends in row["ends"].values())
        assert tried == sum(row["again"].values()) > 0
        assert not any(DIED in e for name, e in row["ends"].items() if name != NO_MEMORY.name)


def test_no_damage_went_by_in_silence() -> None:
    assert DAMAGED.rows()
    for row in DAMAGED.rows():
        assert row["failures"] == []
        assert sum(sum(ends.values()) for ends in row["ends"].values()) > 0


def test_no_crash_lost_anything() -> None:
    for row in CRASHES.rows():
        outcomes = row["outcomes"]
        assert row["failures"] == []
        assert outcomes["failed"] == 0
        assert sum(outcomes.values()) == sum(row["states"].values()) > 0
