"""Every call of a case that can fail: what the command says and leaves, and makes of it later."""

import re
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from crash.cases import Case
from crash.disk import Disk, Tree, lay_out
from crash.enumerate import (
    CONTINUED,
    DONE_BEFORE,
    FAILED,
    difference,
    first_state,
    kernel,
    must,
    part,
)
from crash.faults import ALLOCATIONS, FAULTS, NO_MEMORY, REMEDY, Fault
from crash.points import Driver, Message, Point
from support.zygote import Ended
from versatileffn.workspace.durable import PARTIAL

SAID, WENT_ON, DIED = "said", "went on", "died"
STAYED = re.compile(r"^note: .*can't be removed", re.MULTILINE)
"""What a command says of leftovers; then it may leave them."""


@dataclass
class Faults:
    """What came of a case.

    Args:
        case: its name.
        points: calls of an undisturbed run that can fail in each way.
        ends: how the command ended, by fault: it said what was wrong, it went on to the right
            result, or native code ended the process.
        again: how the command ended, given again without the fault.
        failures: a line for each that fails.
    """

    case: str
    points: Counter[str] = field(default_factory=Counter)
    ends: dict[str, Counter[str]] = field(default_factory=dict)
    again: Counter[str] = field(default_factory=Counter)
    failures: list[str] = field(default_factory=list)


def enumerate_faults(
    case: Case,
    driver: Driver,
    faults: tuple[Fault, ...] = FAULTS,
    stride: int = 1,
    allocation_stride: int = 1,
    calls: tuple[str, ...] = (),
    report: Callable[[str], None] = lambda line: None,
) -> Faults:
    """Let a case's command fail at its points, and see what it says, and whether it is repaired.

    Args:
        case: the command.
        driver: runs it.
        faults: ways to fail.
        stride: every how many-th point.
        allocation_stride: every how many-th allocation.
        calls: only points before these; none: before any.
        report: called with a line for each failure.

    Raises:
        RuntimeError: the command fails without a fault.
    """
    return _Enumeration(case, driver, report).run(faults, stride, allocation_stride, calls)


class _Enumeration:
    def __init__(self, case: Case, driver: Driver, report: Callable[[str], None]) -> None:
        self.case, self.driver, self.report = case, driver, report
        self.command = [case.function, *case.command]
        self.first = first_state(case, driver)
        self.at_first = Disk(driver.root)
        self.found = Faults(case.name)
        self.repaired: dict[frozenset[Any], tuple[str, str]] = {}
        ended, disk = driver.again(self.command, self.first, self.at_first)
        must(ended, case)
        self.expected = self._essence(disk)
        self.whole = [part(case.essence(self.first, self.at_first.blobs), case)]
        self.whole.append(part(self.expected, case))

    def run(
        self, faults: tuple[Fault, ...], stride: int, allocation_stride: int, calls: tuple[str, ...]
    ) -> Faults:
        points = self._points([fault for fault in faults if fault is not NO_MEMORY], calls)
        for fault in faults:
            numbers = self._allocations() if fault is NO_MEMORY else points[fault.name]
            every = allocation_stride if fault is NO_MEMORY else stride
            self.found.points[fault.name] = len(numbers)
            self.found.ends[fault.name] = Counter()
            for number in numbers[every - 1 :: every]:
                self._try(fault, number)
        return self.found

    def _lay_out(self) -> None:
        lay_out(self.first, self.at_first.blobs, self.driver.root)

    def _essence(self, disk: Disk) -> dict[str, Any]:
        return self.case.essence(kernel(disk), disk.blobs)

    def _points(self, faults: list[Fault], calls: tuple[str, ...]) -> dict[str, list[int]]:
        """Fault -> numbers of the calls that can fail so; a file's first write stands for all."""
        found: dict[str, list[int]] = {fault.name: [] for fault in faults}
        writes: Counter[str] = Counter()
        number = 0

        def look(message: Message) -> int:
            nonlocal number
            number += 1
            path = self.driver.name(message)
            writes[path] = writes[path] + 1 if message.call.startswith("write") else 0
            if writes[path] <= 2 and not re.search(self.case.elsewhere, path):
                for fault in faults:
                    if fault.takes(message) and (not calls or message.call in calls):
                        found[fault.name].append(number)
            return 0

        self._lay_out()
        must(self.driver.converse(self.command, look), self.case)
        return found

    def _allocations(self) -> list[int]:
        number = 0

        def count(message: Message) -> int:
            nonlocal number
            number += message.call == "allocate"
            return 0

        self._lay_out()
        must(self.driver.converse(self.command, count, ALLOCATIONS), self.case)
        return list(range(1, number + 1))

    def _try(self, fault: Fault, wanted: int) -> None:
        """Let one call fail."""
        number, failed = 0, None

        def answer(message: Message) -> int:
            nonlocal number, failed
            if fault is not NO_MEMORY or message.call == "allocate":
                number += 1
            if failed is None and number == wanted and fault.takes(message):
                name = (
                    f"{message.number} bytes" if fault is NO_MEMORY else self.driver.name(message)
                )
                failed = Point(number, message.call, name)
                return fault.number
            return fault.number if failed is not None and fault.after(message) else 0

        self._lay_out()
        allocations = ALLOCATIONS if fault is NO_MEMORY else 0
        ended = self.driver.converse(self.command, answer, allocations)
        disk = Disk(self.driver.root)
        if failed is None:  # another order of threads: nothing failed
            failed = Point(wanted, "a call that another order of threads left out", "")
        end, complaint = self._end(fault, ended, disk)
        left = self._essence(disk)
        if self.case.output and part(left, self.case) not in self.whole:
            complaint = f"neither the old nor the new {self.case.output} is whole"
        again, difficulty = self._again(disk)
        self.found.again[again] += 1
        complaint = complaint or difficulty
        if complaint:
            self.found.failures.append(f"{fault.name} at {failed}: {complaint}")
            self.report(f"{self.case.name}: {self.found.failures[-1]}")
        self.found.ends[fault.name][end] += 1

    def _end(self, fault: Fault, ended: Ended, disk: Disk) -> tuple[str, str]:
        """How the command ended, and what is wrong with that."""
        if ended.code == 0:
            found = self._essence(disk)
            if STAYED.search(ended.output):
                found = {path: value for path, value in found.items() if PARTIAL not in path}
            other = difference(found, self.expected)
            return WENT_ON, f"it ended well, and: {other}" if other else ""
        if ended.code < 0 and fault is NO_MEMORY:
            return DIED, ""
        line = ended.last_line
        if "Traceback" in ended.output or not line.startswith("error: "):
            return SAID, f"exit code {ended.code}: {line[-300:]}"
        if not re.search(fault.cause, line):
            return SAID, f"the cause isn't named: {line[-300:]}"
        return SAID, "" if REMEDY.search(line) else f"no remedy: {line[-300:]}"

    def _again(self, disk: Disk) -> tuple[str, str]:
        """How the command ends given again, and what is wrong with that; equal states once."""
        left: Tree = kernel(disk)
        key = frozenset(left.items())
        if key not in self.repaired:
            ended, after = self.driver.again(self.command, left, disk)
            other = difference(self._essence(after), self.expected)
            finished = self.case.finished
            if ended.code == 0:
                outcome = (FAILED, f"given again: {other}") if other else (CONTINUED, "")
            elif ended.code == 1 and finished and re.search(finished, ended.output) and not other:
                outcome = (DONE_BEFORE, "")
            else:
                outcome = (FAILED, f"given again, exit code {ended.code}: {ended.last_line[-300:]}")
            self.repaired[key] = outcome
        return self.repaired[key]
