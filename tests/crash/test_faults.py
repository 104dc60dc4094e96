"""Calls that fail: a sample for each verb, and programs that the tool must flag or pass."""

import pytest

from crash.controls import control
from crash.enumerate_faults import SAID, WENT_ON, enumerate_faults
from crash.faults import BROKEN, FAULTS, FULL, NO_MEMORY, READ_ONLY, SHORTENED, Fault
from crash.points import Driver
from crash.test_crash_points import PUBLISHING, case_named
from crash.workshop import Workshop

OF_DISK = (FULL, BROKEN, READ_ONLY, SHORTENED)


def test_who_tells_and_starts_again_passes(driver: Driver) -> None:
    found = enumerate_faults(control("telling"), driver, OF_DISK)
    assert found.failures == []
    assert all(found.ends[fault.name][SAID] > 4 for fault in (FULL, BROKEN, READ_ONLY))
    assert found.ends[SHORTENED.name] == {WENT_ON: 2}


@pytest.mark.parametrize("fault", [FULL, SHORTENED], ids=lambda fault: fault.name)
def test_who_takes_no_notice_is_flagged(driver: Driver, fault: Fault) -> None:
    found = enumerate_faults(control("heedless"), driver, (fault,))
    assert any("neither the old nor the new" in line for line in found.failures)


def test_who_tells_nothing_is_flagged(driver: Driver) -> None:
    found = enumerate_faults(control("careful"), driver, (BROKEN,))
    assert any("exit code 70" in line for line in found.failures)


@pytest.mark.parametrize(("name", "faults", "stride", "calls"), [
    ("perplexity --json", OF_DISK, 2, ()),
    ("perplexity --json", (NO_MEMORY,), 60, ()),
    ("upcycle --overwrite", (FULL, BROKEN), 1, PUBLISHING),
    ("tokenize", (BROKEN,), 1, PUBLISHING),
    ("train", (READ_ONLY,), 9, ("rename", "write")),
])  # fmt: skip
def test_a_fault_is_told_and_loses_nothing(
    workshop: Workshop,
    name: str,
    faults: tuple[Fault, ...],
    stride: int,
    calls: tuple[str, ...],
) -> None:
    assert set(faults) <= set(FAULTS)
    case = case_named(name, workshop)
    found = enumerate_faults(case, workshop.driver, faults, stride, stride, calls)
    assert sum(ends.total() for ends in found.ends.values()) >= 2
    assert found.failures == []
