"""A results file as Markdown tables, what it says of the goals, and the page that shows both."""

import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from fnmatch import fnmatchcase
from functools import partial, reduce
from operator import getitem
from pathlib import Path
from typing import Any

from versatileffn.errors import ConfigError
from versatileffn.workspace.durable import write_bytes
from versatileffn.workspace.manifest import read_record

FORMAT = 1
BEGIN, END = "<!-- bench: begin -->", "<!-- bench: end -->"
Found = dict[str, Any]
Cell = Callable[[Found], str]
Goal = tuple[int, str, str, float, tuple[str, ...], tuple[str, ...]]
SLOW, STEP = ("ratios", "straightforward/packed"), ("ratios", "straightforward/recompute")
GOALS: list[Goal] = [
    (1, "extra time of the width pathway / dense FFN", "≤", 0.03,
         ("width/d1024/*",), ("extra",)),
    (2, "inference / (E[ℓ̂] × dense)", "≤", 1.05,
         ("inference/d1024/*",), ("ratios", "packed/dense")),
    (3, "straightforward / ours, inference, E = 2.5", "≥", 1.65,
         ("inference/d1024/*/2.5",), SLOW),
    (3, "straightforward / ours, inference, E = 1.4", "≥", 2.9,
         ("inference/d1024/*/1.4",), SLOW),
    (4, "straightforward / ours, training step, E = 2.5", "≥", 1.4,
         ("training/d1024/*/2.5", "training/d512/*/bfloat16/2.5"), SLOW),
    (4, "straightforward / ours, training step, E = 1.4", "≥", 1.85,
         ("training/d1024/*/1.4", "training/d512/*/bfloat16/1.4"), SLOW),
    (5, "recompute mode: saved values / (D × tokens)", "≤", 4.0,
         ("memory/*",), ("memory", "recompute", "saved_values_per_token")),
    (5, "straightforward / recompute mode, training step, E = 2.5", "≥", 1.2,
         ("training/d1024/*/2.5",), STEP),
    (6, "batch-1 decode, 4 loops / 1 loop, D = 512, bf16", "≤", 2.0,
         ("decode/d512/b1/bfloat16",), ("ratios", "4 loops/1 loop")),
    (7, "whole-model training, FLOPs a second / the dense model's", "≥", 0.95,
         ("model/training/*",), ("rate_per_flop", "auto")),
    (8, "kernels in a CUDA graph, inference / (E[ℓ̂] × dense)", "≤", 1.1,
         ("inference/cuda/*",), ("ratios", "triton-graph/dense")),
    (8, "their share of a large product's FLOPs a second", "≥", 0.7,
         ("inference/cuda/*",), ("ratios", "peak/triton-graph")),
    (9, "kernels, batch-1 decode, 4 loops / 1 loop", "≤", 2.7,
         ("decode/cuda/*/b1",), ("ratios", "4 loops/1 loop")),
]  # fmt: skip
"""Number by which documents refer to it, what is measured, which side of the limit is good, the
limit, patterns of the cases that are held to it, and where a case has the value, key by key: a
spread, or a count for each token, which is divided by D."""


def read_results(path: Path) -> dict[str, Any]:
    """The content of a results file.

    Raises:
        ConfigError: it is missing, damaged, or something else.
    """
    content = read_record(path)
    if content is None or content.get("format") != FORMAT:
        raise ConfigError(f"{path} is no results file of these benchmarks: choose another --out")
    return content


def write_into(page: Path, begin: str, text: str, end: str) -> None:
    """Replace what stands between two markers of a Markdown page."""
    before, rest = page.read_text(encoding="utf-8").split(begin)
    write_bytes(page, f"{before}{begin}{text}{end}{rest.split(end, 1)[1]}".encode())


def tables_of(source: Path, page: Path) -> str:
    """What stands between `BEGIN` and `END` of a page: a results file's tables."""
    return f"\n{markdown(read_results(source), Path(os.path.relpath(source, page.parent)))}\n"


def markdown(results: dict[str, Any], source: Path) -> str:
    """All tables; columns that nothing was measured for are left out."""
    cases = results["cases"]
    goals = [row for goal in GOALS if (row := goal_row(cases, goal))]
    goal_columns = ("#", "ratio", "goal", "worst median", "quartiles", "at", "kept by", "verdict")
    sections = [_header(results, source), "### Goals\n\n" + table(goal_columns, goals)]
    for kind, title, note, columns in TABLES:
        mine = {n: case["found"] for n, case in cases.items() if n.startswith(f"{kind}/")}
        filled = {"case": [name.partition("/")[2] for name in mine]}
        filled |= {name: [_shown(cell, f) for f in mine.values()] for name, cell in columns.items()}
        filled = {name: cells for name, cells in filled.items() if any(cells)}
        if mine:
            rows = zip(*filled.values(), strict=True)
            sections.append(f"### {title}\n\n{note}\n\n{table(list(filled), rows)}")
    return "\n\n".join(sections)


def goal_row(cases: Mapping[str, Any], goal: Goal) -> list[str]:
    """A goal, the value furthest on the wrong side, and how many cases kept to it.

    Empty where no case was measured.
    """
    number, title, sign, limit, patterns, path = goal
    found = {}
    for name, case in cases.items():
        if any(fnmatchcase(name, pattern) for pattern in patterns):
            value = reduce(getitem, path, case["found"])
            if not isinstance(value, dict):
                value = {"median": value / case["inputs"]["settings"]["d_model"]}
            found[name] = value
    if not found:
        return []
    bad = {"≤": 1, "≥": -1}[sign]
    worst = max(found, key=lambda name: bad * found[name]["median"])
    value = found[worst]
    quartiles = f"{value['low']:.3f} to {value['high']:.3f}" if "low" in value else "–"
    kept = sum(bad * (each["median"] - limit) <= 0 for each in found.values())
    verdict = "met" if kept == len(found) else "**missed**"
    counts = f"{kept} of {len(found)}"
    median = f"{value['median']:.3f}"
    return [str(number), title, f"{sign} {limit:g}", median, quartiles, worst, counts, verdict]


def table(columns: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A Markdown table."""
    lines = [columns, ["---"] * len(columns), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _header(results: dict[str, Any], source: Path) -> str:
    settings = results["settings"]
    commands = ", ".join(f"`{command}`" for command in results["commands"])
    versions = ", ".join(f"{name} {version}" for name, version in settings["versions"].items())
    header = (
        f"{commands}, {results['created'][:10]}: {settings['machine']['name']}, "
        f"{settings['threads']} threads, seed {settings['seed']}; {versions}. "
        f"[{source.name}]({source.as_posix()}) has every number."
    )
    cases = results["cases"].values()
    flops = [each for case in cases for each in case["found"].get("flops", {}).values()]
    agree = sum(each["executed"] == each["planned"] for each in flops)
    if flops:  # of runs before tests alone counted them
        header += (
            f"\nExecuted matrix-product FLOPs equal the planned ones in {agree} of {len(flops)} "
            "executions."
        )
    if settings["quick"]:
        header += "\n**Tiny sizes (`--quick`): these numbers show that it works, and no speed.**"
    return header


def _shown(cell: Cell, found: Found) -> str:
    """A cell, empty where that wasn't measured."""
    try:
        return cell(found)
    except KeyError:
        return ""


def _each(show: Callable[[str, Found], str], *names: str) -> dict[str, Cell]:
    """A column for each name: what `show` makes of it in what was found."""
    return {name.replace("/", " / "): partial(show, name) for name in names}


def _ratio(name: str, found: Found) -> str:
    return f"{found['ratios'][name]['median']:.2f}"


def _per_loop(name: str, found: Found) -> str:
    ratio = found["ratios"][f"{name}/dense"]["median"]
    return f"{ratio * found['mean_loops']:.2f} ({ratio:.3f})"


def _rate(name: str, found: Found) -> str:
    per_flop = found["rate_per_flop"][name]["median"]
    return f"{found['tokens_per_second'][name]:,.0f} ({per_flop:.2f})"


LOOPS: dict[str, Cell] = {"E[ℓ̂]": lambda f: f"{f['mean_loops']:.2f}"}
TABLES: list[tuple[str, str, str, dict[str, Cell]]] = [
    ("inference", "Layer, inference", "Units of the dense FFN; in brackets, divided by E[ℓ̂].",
     LOOPS
     | _each(_per_loop, "packed", "masked", "straightforward", "triton", "triton-graph")
     | _each(_ratio, "straightforward/packed")),
    ("training", "Layer, training step", "Units: a third of the dense training step.",
     LOOPS
     | {"4 + 2·E[ℓ̂]": lambda f: f"{4 + 2 * f['mean_loops']:.2f}"}
     | _each(lambda name, f: _ratio(f"{name}/dense", f),
             "packed", "recompute", "masked", "straightforward")
     | _each(_ratio, "straightforward/packed", "straightforward/recompute")),
    ("memory", "Memory of a training step", "KiB saved for the backward pass, for each token.",
     _each(lambda name, f: f"{f['memory'][name]['saved_bytes_per_token'] / 1024:.1f}",
           "dense", "straightforward", "masked", "packed", "recompute")),
    ("decode", "Decode", "Milliseconds for one token of each sequence through all layers.",
     {"layers": lambda f: str(f["layers"])}
     | _each(lambda name, f: f"{f['seconds'][name]['median'] * 1e3:.3g}",
             "dense", "1 loop", "mixed", "4 loops", "straightforward, 4 loops")
     | _each(_ratio, "4 loops/1 loop")),
    ("model", "Whole model",
     "Tokens per second (in brackets: FLOPs per second against the dense model's).",
     LOOPS
     | _each(_rate, "dense", "2-loop", "4-loop", "moe", "straightforward",
             "auto", "packed", "recompute", "masked")),
]  # fmt: skip
"""Kind of case, title, what the numbers are, and columns."""
