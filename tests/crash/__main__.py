"""`python tests/crash [--faults] [--case NAME] [--stride N]`: enumerate, and write the table."""

import argparse
import functools
import importlib.util
import sys
import tempfile
import time
from pathlib import Path

HERE = Path(__file__).resolve()
sys.path[:0] = [str(HERE.parents[1]), str(HERE.parents[2] / "src")]

from crash.cases import Case, all_cases  # noqa: E402
from crash.disk import MODES  # noqa: E402
from crash.enumerate import enumerate_crashes  # noqa: E402
from crash.enumerate_faults import enumerate_faults  # noqa: E402
from crash.faults import FAULTS  # noqa: E402
from crash.tables import CRASHES, FAILING, crash_row, fault_row, made_by  # noqa: E402
from crash.workshop import Workshop  # noqa: E402


def main() -> None:
    """Enumerate the chosen cases, one after the other."""
    kinds = [fault.name for fault in FAULTS]
    parser = argparse.ArgumentParser(prog="python tests/crash", description=__doc__)
    parser.add_argument("--case", action="append", help="only this one; repeatable")
    parser.add_argument("--mode", action="append", choices=MODES, help="only this kind of loss")
    parser.add_argument("--faults", action="store_true", help="calls that fail, not crashes")
    parser.add_argument("--fault", action="append", choices=kinds, help="only this one")
    parser.add_argument("--stride", type=int, default=1, help="every so many-th point")
    parser.add_argument("--allocations", type=int, default=1, help="every so many-th allocation")
    parser.add_argument("--write", action="store_true", help="write results and the table")
    chosen = parser.parse_args()
    failed = False
    with (
        tempfile.TemporaryDirectory(prefix="crash-points-") as place,
        Workshop(Path(place)) as shop,
    ):
        for case in all_cases(shop.inputs):
            if chosen.case and case.name not in chosen.case:
                continue
            if not importlib.util.find_spec(case.needs):
                print(f"{case.name}: left out, for there is no {case.needs}")
                continue
            began = time.monotonic()
            row = _row(case, shop, chosen) | made_by(time.monotonic() - began)
            print(row | {"failures": len(row["failures"])}, flush=True)
            failed |= bool(row["failures"])
            if chosen.write:
                (FAILING if chosen.faults else CRASHES).write(row)
    sys.exit(failed)


def _row(case: Case, shop: Workshop, chosen: argparse.Namespace) -> dict:
    say = functools.partial(print, flush=True)
    if not chosen.faults:
        modes = tuple(chosen.mode or MODES)
        found = enumerate_crashes(case, shop.driver, modes, chosen.stride, report=say)
        return crash_row(found, chosen.stride)
    faults = tuple(fault for fault in FAULTS if fault.name in (chosen.fault or [fault.name]))
    failing = enumerate_faults(
        case, shop.driver, faults, chosen.stride, chosen.allocations, report=say
    )
    return fault_row(failing, chosen.stride, chosen.allocations)


if __name__ == "__main__":
    main()
