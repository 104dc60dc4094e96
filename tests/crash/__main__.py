"""`python tests/crash [--faults | --damage] [--case NAME] [--stride N]`: enumerate, and write."""

import argparse
import functools
import importlib.util
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

HERE = Path(__file__).resolve()
sys.path[:0] = [str(HERE.parents[1]), str(HERE.parents[2] / "src")]

from crash.cases import all_cases  # noqa: E402
from crash.damage import all_scenes, enumerate_damage  # noqa: E402
from crash.disk import MODES  # noqa: E402
from crash.enumerate import enumerate_crashes  # noqa: E402
from crash.enumerate_faults import enumerate_faults  # noqa: E402
from crash.faults import FAULTS  # noqa: E402
from crash.tables import (  # noqa: E402
    CRASHES,
    DAMAGED,
    FAILING,
    Table,
    crash_row,
    damage_row,
    fault_row,
    made_by,
)
from crash.workshop import Workshop  # noqa: E402


def main() -> None:
    """Enumerate the chosen cases, one after the other."""
    kinds = [fault.name for fault in FAULTS]
    parser = argparse.ArgumentParser(prog="python tests/crash", description=__doc__)
    parser.add_argument("--case", action="append", help="only this one; repeatable")
    parser.add_argument("--mode", action="append", choices=MODES, help="only this kind of loss")
    parser.add_argument("--faults", action="store_true", help="calls that fail, not crashes")
    parser.add_argument("--fault", action="append", choices=kinds, help="only this one")
    parser.add_argument("--damage", action="store_true", help="files that are damaged")
    parser.add_argument("--stride", type=int, default=1, help="every so many-th of them")
    parser.add_argument("--allocations", type=int, default=1, help="every so many-th allocation")
    parser.add_argument("--bytes", type=int, default=1, help="every so many-th, where all are")
    parser.add_argument("--write", action="store_true", help="write results and the table")
    chosen = parser.parse_args()
    failed = False
    with (
        tempfile.TemporaryDirectory(prefix="crash-points-") as place,
        Workshop(Path(place)) as shop,
    ):
        for name, needs, table, enumerate_it in _work(shop, chosen):
            if chosen.case and name not in chosen.case:
                continue
            if not importlib.util.find_spec(needs):
                print(f"{name}: left out, for there is no {needs}")
                continue
            began = time.monotonic()
            row = enumerate_it()
            row |= made_by(time.monotonic() - began)
            print(row | {"failures": len(row["failures"])}, flush=True)
            failed |= bool(row["failures"])
            if chosen.write:
                table.write(row)
    sys.exit(failed)


def _work(
    shop: Workshop, chosen: argparse.Namespace
) -> Iterator[tuple[str, str, Table, Callable[[], dict]]]:
    """What is to be done: a case's name, what it needs, its table, and what makes its row."""
    driver, stride = shop.driver, chosen.stride
    say = functools.partial(print, flush=True)
    if chosen.damage:
        for scene in all_scenes(shop):
            yield (
                scene.case.name,
                scene.case.needs,
                DAMAGED,
                lambda scene=scene: damage_row(
                    enumerate_damage(scene, driver, stride, chosen.bytes, say), stride, chosen.bytes
                ),
            )
        return
    faults = tuple(fault for fault in FAULTS if fault.name in (chosen.fault or [fault.name]))
    modes, allocations = tuple(chosen.mode or MODES), chosen.allocations
    for case in all_cases(shop.inputs):
        if chosen.faults:
            yield (
                case.name,
                case.needs,
                FAILING,
                lambda case=case: fault_row(
                    enumerate_faults(case, driver, faults, stride, allocations, report=say),
                    stride,
                    allocations,
                ),
            )
        else:
            yield (
                case.name,
                case.needs,
                CRASHES,
                lambda case=case: crash_row(
                    enumerate_crashes(case, driver, modes, stride, report=say), stride
                ),
            )


if __name__ == "__main__":
    main()
