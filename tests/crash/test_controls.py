"""The tool itself: it flags what is wrong, passes what is right, and sees every change."""

import re
import shutil
import subprocess
from collections import Counter
from pathlib import Path

import pytest

from crash.controls import control
from crash.disk import CONTENTS, KILL, Disk
from crash.enumerate import CONTINUED, enumerate_crashes
from crash.points import Driver, Point


def test_publishing_without_fsync_is_flagged(driver: Driver) -> None:
    found = enumerate_crashes(control("careless"), driver)
    assert not [line for line in found.failures if line.startswith(KILL)]
    whole = "neither the old nor the new result.json is whole"
    assert any(line.startswith(CONTENTS) and whole in line for line in found.failures)
    done = [line for line in found.failures if "before the end" in line]
    assert done
    assert all("it had said that it was done" in line for line in done)


def test_a_gap_between_old_and_new_is_flagged(driver: Driver) -> None:
    found = enumerate_crashes(control("hasty"), driver, modes=(KILL,))
    assert any("neither the old nor the new" in line for line in found.failures)


def test_syncing_in_the_right_order_passes(driver: Driver) -> None:
    found = enumerate_crashes(control("careful"), driver)
    assert found.failures == []
    assert found.outcomes == Counter({CONTINUED: found.states.total()})
    assert found.points > 12
    assert found.states[KILL] > 8


def test_a_real_sigkill_leaves_what_was_seen(driver: Driver) -> None:
    """The state at a point is what the process group's death at that point leaves."""
    command = [control("careful").function, "careful"]
    seen: list[dict] = []

    def look(point: Point, disk: Disk) -> None:
        seen.append(disk.after(KILL))

    def afresh() -> None:
        shutil.rmtree(driver.root)
        driver.root.mkdir()

    afresh()
    ended, _ = driver.watch(command, look)
    assert ended.code == 0
    for number in range(1, len(seen), 3):
        afresh()
        ended, disk = driver.watch(command, lambda point, disk: None, kill_at=number)
        assert ended.code == -9
        assert disk.after(KILL) == seen[number - 1], number


CLASSES = {
    "open": "open|openat|creat",
    "write": "write|pwrite64|writev|sendfile|copy_file_range",
    "rename": "rename|renameat|renameat2",
    "mkdir": "mkdir|mkdirat",
    "unlink": "unlink|unlinkat|rmdir",
    "link": "link|linkat|symlink|symlinkat",
    "truncate": "truncate|ftruncate",
    "fsync": "fsync|fdatasync",
}


@pytest.mark.skipif(not shutil.which("strace"), reason="there is no strace to compare with")
def test_no_system_call_goes_unseen(driver: Driver, tmp_path: Path) -> None:
    """The shim sees what strace sees of Python, Rust and C++: all but one renaming."""
    shutil.rmtree(driver.root)
    driver.root.mkdir()
    names = "|".join(CLASSES.values()).split("|")
    tracer = subprocess.Popen(
        ["strace", "-f", "-y", "-o", str(tmp_path / "trace"), "-e", f"trace={','.join(names)}",
         "-p", str(driver.zygote.process.pid)],
        stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert tracer.stderr is not None
    if "attached" not in tracer.stderr.readline():
        tracer.wait()
        pytest.skip("strace may not look at other processes here")
    seen: Counter[str] = Counter()

    def count(point: Point, disk: Disk) -> None:
        call = {"exchange": "rename", "rmdir": "unlink", "symlink": "link"}.get(point.call)
        seen[call or re.split("[ ,]", point.call)[0]] += 1

    ended, _ = driver.watch(["crash.controls:main", "everything"], count)
    tracer.terminate()
    tracer.wait()
    assert ended.code == 0, ended.output
    del seen["the"]  # end
    traced: Counter[str] = Counter()
    for line in (tmp_path / "trace").read_text().splitlines():
        call = re.match(r"\d+ +(\w+)\(", line)
        if call and str(driver.root) in line and "O_RDONLY" not in line:
            traced[next(name for name, all_ in CLASSES.items() if call[1] in all_.split("|"))] += 1
    assert traced.keys() == CLASSES.keys()
    # safetensors renames its temporary file by the processor's instruction, past the C library.
    assert traced - seen == Counter({"rename": 1})
    assert not seen - traced
