"""Every crash point of a case: what the crash leaves, and what the same command makes of it."""

import itertools
import re
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from crash.cases import Case
from crash.disk import MODES, Disk, Tree, lay_out
from crash.points import THE_END, Driver, Point
from support.zygote import Ended

CONTINUED, DONE_BEFORE, FAILED = "continued", "done before", "failed"
OUTCOMES = (CONTINUED, DONE_BEFORE, FAILED)


@dataclass(frozen=True)
class Crash:
    """One state after a crash: where, how, what was there and what is left of it."""

    point: Point
    mode: str
    before: Tree
    left: Tree


@dataclass
class Enumeration:
    """What came of a case.

    Args:
        case: its name.
        points: changes that an undisturbed run makes, and its end.
        states: different states that crashes leave, under the first mode that leaves them.
        outcomes: how many of them end how.
        failures: a line for each that fails.
    """

    case: str
    points: int = 0
    states: Counter[str] = field(default_factory=Counter)
    outcomes: Counter[str] = field(default_factory=Counter)
    failures: list[str] = field(default_factory=list)


def enumerate_crashes(
    case: Case,
    driver: Driver,
    modes: tuple[str, ...] = MODES,
    stride: int = 1,
    calls: tuple[str, ...] = (),
    report: Callable[[str], None] = lambda line: None,
) -> Enumeration:
    """Crash a case's command at its points, and see whether the same command repairs it.

    Args:
        case: the command.
        driver: runs it.
        modes: kinds of loss, see `Disk.after`.
        stride: every how many-th point.
        calls: take only points before these calls, and the end; none: before any.
        report: called with a line for each failure.

    Raises:
        RuntimeError: the command fails without a crash, or its result isn't the same twice.
    """
    first = first_state(case, driver)
    found = Enumeration(case.name)
    wanted = _every(stride, calls)
    crashes, disk = _crashes(case, driver, modes, wanted, found)
    expected = case.essence(kernel(disk), disk.blobs)
    whole = [part(case.essence(first, disk.blobs), case), part(expected, case)]
    ended, after = driver.again([case.function, *case.command], first, disk)
    unlike = difference(case.essence(kernel(after), after.blobs), expected)
    if ended.code or unlike:
        raise RuntimeError(f"{case.name} isn't the same twice: {unlike or ended.output}")
    for crash in crashes:
        found.states[crash.mode] += 1
        outcome, complaint = _repair(case, driver, crash, disk, expected)
        left = case.essence(crash.left, disk.blobs)
        if case.output and part(left, case) not in whole:
            outcome, complaint = FAILED, f"neither the old nor the new {case.output} is whole"
        if crash.point.call == THE_END and (gone := difference(left, {**left, **expected})):
            outcome, complaint = FAILED, f"it had said that it was done, and: {gone}"
        found.outcomes[outcome] += 1
        if outcome == FAILED:
            found.failures.append(f"{crash.mode} at {crash.point}: {complaint}")
            report(f"{case.name}: {found.failures[-1]}")
    return found


def first_state(case: Case, driver: Driver) -> Tree:
    """What is there before a case's command."""
    lay_out({"": ("folder", "")}, {}, driver.root)
    for command in case.before:
        must(driver.run([case.function, *command]), case)
    return kernel(Disk(driver.root))


def _every(stride: int, calls: tuple[str, ...]) -> Callable[[Point], bool]:
    """A function that says of each point in turn whether it is tried."""
    passed = itertools.count(1)

    def wanted(point: Point) -> bool:
        if point.call == THE_END:
            return True
        return (not calls or point.call in calls) and next(passed) % stride == 0

    return wanted


def _crashes(
    case: Case,
    driver: Driver,
    modes: tuple[str, ...],
    wanted: Callable[[Point], bool],
    found: Enumeration,
) -> tuple[list[Crash], Disk]:
    """The states that crashes leave, equal ones once; and the disk after an undisturbed run."""
    crashes: dict[frozenset[Any], Crash] = {}
    writes: Counter[str] = Counter()

    def at_point(point: Point, disk: Disk) -> None:
        writes[point.path] = writes[point.path] + 1 if point.call.startswith("write") else 0
        if writes[point.path] > 2:
            return  # a file's first write and its half stand for the others
        if re.search(case.elsewhere, point.path):
            return
        found.points += 1
        if not wanted(point):
            return
        before = kernel(disk)
        for mode in modes:
            left = disk.after(mode, seed=point.number)
            crashes.setdefault(frozenset(left.items()), Crash(point, mode, before, left))

    ended, disk = driver.watch([case.function, *case.command], at_point)
    must(ended, case)
    return list(crashes.values()), disk


def _repair(
    case: Case, driver: Driver, crash: Crash, disk: Disk, expected: dict[str, Any]
) -> tuple[str, str]:
    """Run the command again after a crash; the outcome, and what is wrong with it."""
    ended, after = driver.again([case.function, *case.command], crash.left, disk)
    unlike = difference(case.essence(kernel(after), after.blobs), expected)
    if ended.code == 0:
        lost = case.lost(crash.before, crash.left, ended.output)
        complaint = f"other than without a crash: {unlike}" if unlike else lost
        return (FAILED, complaint) if complaint else (CONTINUED, "")
    if ended.code == 1 and case.finished and re.search(case.finished, ended.output):
        return (FAILED, f"it refuses, and: {unlike}") if unlike else (DONE_BEFORE, "")
    return FAILED, f"exit code {ended.code}: {ended.last_line[-300:]}"


def difference(found: dict[str, Any], expected: dict[str, Any]) -> str:
    """What differs, or nothing."""
    parts = {
        "left over": sorted(found.keys() - expected.keys()),
        "missing": sorted(expected.keys() - found.keys()),
        "other content": sorted(
            p + _where(found[p], expected[p])
            for p in found.keys() & expected
            if found[p] != expected[p]
        ),
    }
    return "; ".join(f"{what}: {', '.join(names[:4])}" for what, names in parts.items() if names)


def _where(found: Any, expected: Any) -> str:
    """The keys under which two JSON values differ, or the lines of which one has more."""
    if isinstance(found, dict) and isinstance(expected, dict):
        keys = sorted(k for k in found.keys() | expected if found.get(k) != expected.get(k))
        return f" ({', '.join(keys[:4])})"
    if isinstance(found, list) and isinstance(expected, list):
        return f" ({len(found)} lines for {len(expected)})"
    return ""


def part(essence: dict[str, Any], case: Case) -> dict[str, Any]:
    """What of it belongs to the output that must be whole at every moment."""
    top = case.output
    return {p: value for p, value in essence.items() if p == top or p.startswith(f"{top}/")}


def kernel(disk: Disk) -> Tree:
    """What is there, as the kernel has it."""
    return disk.after("kill")


def must(ended: Ended, case: Case) -> None:
    """See that a command that nothing disturbed ended well.

    Raises:
        RuntimeError: it didn't.
    """
    if ended.code:
        raise RuntimeError(f"{case.name} fails without a crash: {ended.output[-1000:]}")
