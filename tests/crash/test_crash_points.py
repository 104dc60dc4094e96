"""A sample of the crash points of each verb; `python tests/crash` tries them all."""

import dataclasses
import importlib.util

import pytest

from crash.cases import Case, all_cases
from crash.disk import CONTENTS, KILL, MODES
from crash.enumerate import enumerate_crashes
from crash.workshop import Workshop

PUBLISHING = ("rename", "exchange")


@pytest.mark.parametrize(("name", "stride", "calls", "modes"), [
    ("perplexity --json", 1, (), MODES),
    ("upcycle --overwrite", 1, PUBLISHING, MODES),
    ("tokenize --overwrite", 2, PUBLISHING, MODES),
    ("analyze --overwrite", 1, PUBLISHING, MODES),
    ("evaluate", 8, (), MODES),
    ("train", 6, PUBLISHING, MODES),
])  # fmt: skip
def test_a_crash_loses_nothing(
    workshop: Workshop,
    name: str,
    stride: int,
    calls: tuple[str, ...],
    modes: tuple[str, ...],
) -> None:
    case = case_named(name, workshop)
    found = enumerate_crashes(case, workshop.driver, modes, stride, calls)
    assert found.states.total() >= 2
    assert found.failures == []


def test_a_verb_without_fsync_is_flagged(workshop: Workshop) -> None:
    case = dataclasses.replace(
        case_named("perplexity --json", workshop), function="crash.controls:unsynced"
    )
    found = enumerate_crashes(case, workshop.driver, MODES, calls=PUBLISHING)
    assert any(line.startswith(CONTENTS) for line in found.failures)
    assert not any(line.startswith(KILL) for line in found.failures)


def case_named(name: str, workshop: Workshop) -> Case:
    case = next(case for case in all_cases(workshop.inputs) if case.name == name)
    if not importlib.util.find_spec(case.needs):
        pytest.skip(f"{name} needs {case.needs}")
    return case
