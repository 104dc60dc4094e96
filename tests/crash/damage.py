"""What lies on the disk is damaged, and the command given again: an error, or the damaged part
redone, and never another result without a word."""

import hashlib
import re
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

from crash.cases import Case, all_cases
from crash.disk import FILE, Disk, Tree, lay_out
from crash.enumerate import difference, first_state, kernel, must
from crash.points import THE_END, Driver, Point
from crash.workshop import Workshop

FLIPPED, DROPPED, EMPTY, ABSENT, FOREIGN = (
    "flipped byte", "missing byte", "empty", "absent", "another's",
)  # fmt: skip
KINDS = (FLIPPED, DROPPED, EMPTY, ABSENT, FOREIGN)
REDONE, UNUSED, REFUSED = "redone", "unused", "refused"
ENDS = (REDONE, UNUSED, REFUSED)
REJECTED = re.compile(r"/rejected-[^/]+(/|$)")


@dataclass(frozen=True)
class Damaged:
    """One file that isn't what it was.

    Args:
        path: of it.
        kind: of damage.
        tree: everything, with it.
    """

    path: str
    kind: str
    tree: Tree

    @property
    def older_checkpoint(self) -> bool:
        """Whether it is in a checkpoint that isn't the newest, which nobody needs."""
        step = re.search(r"checkpoint-(\d+)/", self.path)
        steps = [
            int(each[1]) for path in self.tree if (each := re.search(r"checkpoint-(\d+)$", path))
        ]
        return step is not None and int(step[1]) < max(steps)


@dataclass(frozen=True)
class Scene:
    """Something unfinished or finished on the disk, which is damaged before it is gone on with.

    Args:
        case: whose command is given again.
        cut: a pattern of the point whose state is damaged; the first one.
        other: the same case with other inputs, from whose state at its cut foreign files are.
        small: a pattern of files that no digest guards: bytes all over them are changed.
        only: a pattern of the files that are damaged at all.
    """

    case: Case
    cut: str
    other: Case
    small: str
    only: str = ""


@dataclass
class Damages:
    """What came of a scene.

    Args:
        case: its name.
        files: that were damaged.
        ends: how the command ended, by kind of damage.
        failures: a line for each that fails.
    """

    case: str
    files: int = 0
    ends: dict[str, Counter[str]] = field(default_factory=dict)
    failures: list[str] = field(default_factory=list)


def all_scenes(workshop: Workshop) -> list[Scene]:
    """What is damaged."""
    cases = {case.name: case for case in all_cases(workshop.inputs)}
    tokenize, evaluate = cases["tokenize"], cases["evaluate"]
    settled = tokenize.command
    others = [*settled[:-4], "--vocab-size", "310", "--val-documents", "3"]
    there = ["--set", "data.tokens=tokens"]

    def case(base: Case, command: list[str], *before: list[str]) -> Case:
        return Case(
            base.name, command, before, unstable=base.unstable, rounds=base.rounds,
            needs=base.needs, function=base.function,
        )  # fmt: skip

    train = [*cases["train"].command, *there]
    elsewhere = [*train, "--set", "run.seed=1"]
    scored = [*evaluate.command[:-3], "3", *evaluate.command[-2:]]
    return [
        Scene(case(cases["train"], train, settled), r"^mkdir run/\.model\.partial",
              case(cases["train"], elsewhere, others), r"^run/[^/]+$|contents\.json$"),
        Scene(case(tokenize, settled), r"-> tokens$", case(tokenize, others), r"\.json$"),
        Scene(case(evaluate, evaluate.command), THE_END, case(evaluate, scored), r"\.jsonl?$"),
    ]  # fmt: skip


def enumerate_damage(
    scene: Scene,
    driver: Driver,
    stride: int = 1,
    step: int = 1,
    report: Callable[[str], None] = lambda line: None,
) -> Damages:
    """Damage each file in turn, in each way, and give the command again.

    Args:
        scene: what.
        driver: runs commands.
        stride: every how many-th damage is tried.
        step: between the bytes that are changed in files that no digest guards.
        report: called with a line for each failure.
    """
    foreign, blobs = _state(scene, scene.other, driver)
    state, mine = _state(scene, scene.case, driver)
    case, found = scene.case, Damages(scene.case.name)
    command = [case.function, *case.command]
    lay_out(state, mine, driver.root)
    disk = Disk(driver.root)
    disk.blobs |= blobs
    must(driver.run(command), case)
    undisturbed = Disk(driver.root)
    expected = case.essence(kernel(undisturbed), undisturbed.blobs)
    every = list(_damages(scene, state, foreign, disk.blobs, step))
    found.files = len({each.path for each in every})
    found.ends = {kind: Counter() for kind in KINDS}
    for each in every[stride - 1 :: stride]:
        ended, after = driver.again(command, each.tree, disk)
        now = case.essence(kernel(after), after.blobs)
        if ended.code == 0:
            kept = _without_rejected(now, ended.output)
            end, wrong = REDONE, difference(kept, expected)
            damaged = case.essence(each.tree, disk.blobs).get(each.path)
            if each.older_checkpoint and kept.get(each.path) == damaged:
                end, wrong = UNUSED, difference(_but(each.path, kept), _but(each.path, expected))
        else:
            end = REFUSED
            before = case.essence(each.tree, disk.blobs)
            wrong = difference(now, {**now, **before})
            if "Traceback" in ended.output or not ended.last_line.startswith("error: "):
                wrong = f"exit code {ended.code}: {ended.last_line[-300:]}"
        found.ends[each.kind][end] += 1
        if wrong:
            found.failures.append(f"{each.kind}, {each.path}: {end}, and: {wrong}")
            report(f"{case.name}: {found.failures[-1]}")
    return found


def _state(scene: Scene, case: Case, driver: Driver) -> tuple[Tree, dict[str, bytes]]:
    """What is there at the scene's cut."""
    seen: list[Tree] = []

    def look(point: Point, disk: Disk) -> None:
        if not seen and re.search(scene.cut, f"{point.call} {point.path}".rstrip()):
            seen.append(kernel(disk))

    first_state(case, driver)
    ended, disk = driver.watch([case.function, *case.command], look)
    must(ended, case)
    return seen[0], disk.blobs


def _damages(
    scene: Scene, state: Tree, foreign: Tree, blobs: dict[str, bytes], step: int
) -> Iterator[Damaged]:
    paths = [path for path, (kind, _) in state.items() if kind == FILE and ".lock" not in path]
    paths = [path for path in paths if re.search(scene.only, path)]
    aliens = {_last(path): node for path, node in foreign.items()}
    for path in sorted(paths):
        whole = blobs[state[path][1]]
        small = re.search(scene.small, path) is not None
        size = len(whole)
        places = range(0, size, step) if small else sorted({0, size // 2, size - 1} - {-1})
        contents: list[tuple[str, bytes]] = []
        for at in places:
            flipped = bytes([whole[at] ^ 1 << at % 7])
            contents.append((FLIPPED, whole[:at] + flipped + whole[at + 1 :]))
        contents += [(DROPPED, whole[:at] + whole[at + 1 :]) for at in {0, size // 2} if size]
        contents += [(DROPPED, whole[:-1])] if size else []
        contents += [(EMPTY, b"")] if size else []
        alien = foreign.get(path) or aliens.get(_last(path))
        if alien and blobs[alien[1]] != whole:
            contents.append((FOREIGN, blobs[alien[1]]))
        for kind, content in contents:
            digest = hashlib.sha256(content).hexdigest()
            blobs[digest] = content
            yield Damaged(path, kind, {**state, path: (FILE, digest)})
        yield Damaged(path, ABSENT, {p: node for p, node in state.items() if p != path})


def _last(path: str) -> str:
    return "/".join(path.split("/")[-2:])


def _without_rejected(now: dict[str, Any], output: str) -> dict[str, Any]:
    """What is there, without checkpoints of which it was said that they were set aside."""
    said = "set aside as" in output
    return {path: value for path, value in now.items() if not (said and REJECTED.search(path))}


def _but(path: str, essence: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in essence.items() if name != path}
