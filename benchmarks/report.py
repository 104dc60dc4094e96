"""A results file as Markdown tables, what it says of the goals, and the page that shows both."""

import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from versatileffn.errors import ConfigError
from versatileffn.workspace.durable import write_bytes, writing
from versatileffn.workspace.manifest import read_record

FORMAT = 1
BEGIN, END = "<!-- bench: begin -->", "<!-- bench: end -->"
Found = dict[str, Any]
Cell = Callable[[Found], str]


@dataclass(frozen=True)
class Goal:
    """One goal.

    Args:
        number: by which documents refer to it.
        title: what is measured.
        sign: `≤` or `≥`, which side of the limit is good.
        limit: the number to reach.
        cases: patterns of the names of all cases that are held to it.
        path: where a case has the value, key by key.
    """

    number: int
    title: str
    sign: str
    limit: float
    cases: tuple[str, ...]
    path: tuple[str, ...]

    def cells(self, cases: Mapping[str, Any]) -> list[str] | None:
        """A row: the goal, the value furthest on the wrong side, how many cases kept to it.

        None where no case was measured.
        """
        found = {
            name: self._value(case)
            for name, case in cases.items()
            if any(fnmatchcase(name, pattern) for pattern in self.cases)
        }
        if not found:
            return None
        bad = {"≤": 1, "≥": -1}[self.sign]
        worst = max(found, key=lambda name: bad * found[name]["median"])
        value = found[worst]
        quartiles = f"{value['low']:.3f} to {value['high']:.3f}" if "low" in value else "–"
        kept = sum(bad * (each["median"] - self.limit) <= 0 for each in found.values())
        verdict = "met" if kept == len(found) else "**missed**"
        return [str(self.number), self.title, f"{self.sign} {self.limit:g}",
                f"{value['median']:.3f}", quartiles, worst, f"{kept} of {len(found)}",
                verdict]  # fmt: skip

    def _value(self, case: Mapping[str, Any]) -> dict[str, float]:
        """What was measured: a spread, or the `median` alone, of values per token, over D."""
        value = case["found"]
        for key in self.path:
            value = value[key]
        if isinstance(value, dict):
            return value
        return {"median": value / case["inputs"]["settings"]["d_model"]}


SLOW, STEP = ("ratios", "straightforward/packed"), ("ratios", "straightforward/recompute")
GOALS = [
    Goal(1, "extra time of the width pathway / dense FFN", "≤", 0.03,
         ("width/d1024/*",), ("extra",)),
    Goal(2, "inference / (E[ℓ̂] × dense)", "≤", 1.05,
         ("inference/d1024/*",), ("ratios", "packed/dense")),
    Goal(3, "straightforward / ours, inference, E = 2.5", "≥", 1.65,
         ("inference/d1024/*/2.5",), SLOW),
    Goal(3, "straightforward / ours, inference, E = 1.4", "≥", 2.9,
         ("inference/d1024/*/1.4",), SLOW),
    Goal(4, "straightforward / ours, training step, E = 2.5", "≥", 1.4,
         ("training/d1024/*/2.5", "training/d512/*/bfloat16/2.5"), SLOW),
    Goal(4, "straightforward / ours, training step, E = 1.4", "≥", 1.85,
         ("training/d1024/*/1.4", "training/d512/*/bfloat16/1.4"), SLOW),
    Goal(5, "recompute mode: saved values / (D × tokens)", "≤", 4.0,
         ("memory/*",), ("memory", "recompute", "saved_values_per_token")),
    Goal(5, "straightforward / recompute mode, training step, E = 2.5", "≥", 1.2,
         ("training/d1024/*/2.5",), STEP),
    Goal(6, "batch-1 decode, 4 loops / 1 loop, D = 512, bf16", "≤", 2.0,
         ("decode/d512/b1/bfloat16",), ("ratios", "4 loops/1 loop")),
    Goal(7, "whole-model training, FLOPs a second / the dense model's", "≥", 0.95,
         ("model/training/*",), ("rate_per_flop", "auto")),
    Goal(8, "kernels in a CUDA graph, inference / (E[ℓ̂] × dense)", "≤", 1.1,
         ("inference/cuda/*",), ("ratios", "triton-graph/dense")),
    Goal(8, "their share of a large product's FLOPs a second", "≥", 0.7,
         ("inference/cuda/*",), ("ratios", "peak/triton-graph")),
    Goal(9, "kernels, batch-1 decode, 4 loops / 1 loop", "≤", 2.7,
         ("decode/cuda/*/b1",), ("ratios", "4 loops/1 loop")),
]  # fmt: skip


def read_results(path: Path) -> dict[str, Any]:
    """The content of a results file.

    Raises:
        ConfigError: it is missing, damaged, or something else.
    """
    content = read_record(path)
    try:
        if content is None or content["format"] != FORMAT:
            raise ValueError("not readable, or of another format")
        markdown(content, path)  # reads what anybody reads of it
        for case in content["cases"].values():
            case["inputs"]["budget"]
    except (LookupError, TypeError, ValueError, AttributeError, ArithmeticError) as error:
        raise ConfigError(
            f"{path} is no whole results file of these benchmarks ({type(error).__name__}: "
            f"{str(error)[:80]}): name another one, or measure again with --overwrite"
        ) from None
    return content


def write_into(page: Path, results: dict[str, Any], source: Path) -> None:
    """Replace what stands between the markers of a Markdown file.

    Args:
        page: the file.
        results: what to show.
        source: the JSON file, which is linked.

    Raises:
        ConfigError: the file is missing, lacks the markers, or can't be written.
    """
    try:
        text = page.read_text(encoding="utf-8")
    except (OSError, ValueError) as error:
        raise ConfigError(f"{page} can't be read ({error}): name the page to write into") from None
    before, begin, rest = text.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end:
        raise ConfigError(f"{page} has no place for the tables: add the lines {BEGIN} and {END}")
    tables = markdown(results, Path(os.path.relpath(source, page.parent)))
    with writing(page):
        write_bytes(page, f"{before}{BEGIN}\n{tables}\n{END}{after}".encode())


def markdown(results: dict[str, Any], source: Path) -> str:
    """All tables; columns that nothing was measured for are left out."""
    cases = results["cases"]
    goals = [row for goal in GOALS if (row := goal.cells(cases)) is not None]
    goal_columns = ("#", "ratio", "goal", "worst median", "quartiles", "at", "kept by", "verdict")
    sections = [_header(results, source), "### Goals\n\n" + table(goal_columns, goals)]
    for kind, title, note, columns in TABLES:
        mine = {n: case["found"] for n, case in cases.items() if case["inputs"]["kind"] == kind}
        filled = {"case": [name.partition("/")[2] for name in mine]}
        filled |= {name: [cell(f) for f in mine.values()] for name, cell in columns.items()}
        filled = {name: cells for name, cells in filled.items() if any(cells)}
        if mine:
            rows = zip(*filled.values(), strict=True)
            sections.append(f"### {title}\n\n{note}\n\n{table(list(filled), rows)}")
    return "\n\n".join(sections)


def table(columns: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A Markdown table."""
    lines = [columns, ["---"] * len(columns), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _header(results: dict[str, Any], source: Path) -> str:
    settings, cases = results["settings"], results["cases"]
    commands = ", ".join(f"`{command}`" for command in results["commands"])
    flops = [each for case in cases.values() for each in case["found"].get("flops", {}).values()]
    agree = sum(each["executed"] == each["planned"] for each in flops)
    versions = ", ".join(f"{name} {version}" for name, version in settings["versions"].items())
    sources = len({case["source_sha256"] for case in cases.values()})
    lines = [
        f"{commands}, {results['created'][:10]}: {settings['machine']['name']}, "
        f"{settings['threads']} threads, seed {settings['seed']}; {versions}. "
        f"[{source.name}]({source.as_posix()}) has every number.",
        f"Executed matrix-product FLOPs equal the planned ones in {agree} of {len(flops)} "
        "executions.",
    ]
    if settings["quick"]:
        lines.append("**Sizes of `--quick`: these numbers show that it works, and no speed.**")
    if sources > 1:
        lines.append(f"The cases were measured with {sources} states of the sources.")
    return "\n".join(lines)


def _columns(
    group: str, show: Callable[[Any, Found, str], str], *names: str, key: str = "{}"
) -> dict[str, Cell]:
    """A column for each name: what `show` makes of `found[group][key]`, empty without it."""

    def cell(name: str) -> Cell:
        at = key.format(name)
        return lambda found: show(found[group][at], found, name) if at in found[group] else ""

    return {name: cell(name) for name in names}


def _ratio(ratio: Any, *_: Any) -> str:
    return f"{ratio['median']:.2f}"


def _against(*pairs: str) -> dict[str, Cell]:
    columns = _columns("ratios", _ratio, *pairs)
    return {pair.replace("/", " / "): cell for pair, cell in columns.items()}


LOOPS: dict[str, Cell] = {"E[ℓ̂]": lambda found: f"{found['mean_loops']:.2f}"}
TABLES: list[tuple[str, str, str, dict[str, Cell]]] = [
    ("inference", "Layer, inference", "Units of the dense FFN; in brackets, divided by E[ℓ̂].", {
        **LOOPS,
        **_columns("ratios", lambda r, found, _: f"{r['median'] * found['mean_loops']:.2f} "
                   f"({r['median']:.3f})", "packed", "masked", "straightforward", "triton",
                   "triton-graph", key="{}/dense"),
        **_against("straightforward/packed"),
    }),
    ("training", "Layer, training step", "Units: a third of the dense training step.", {
        **LOOPS, "4 + 2·E[ℓ̂]": lambda found: f"{4 + 2 * found['mean_loops']:.2f}",
        **_columns("ratios", _ratio, "packed", "recompute", "masked", "straightforward",
                   key="{}/dense"),
        **_against("straightforward/packed", "straightforward/recompute"),
    }),
    ("memory", "Memory of a training step", "KiB saved for the backward pass, for each token.",
     _columns("memory", lambda saved, *_: f"{saved['saved_bytes_per_token'] / 1024:.1f}", "dense",
              "straightforward", "masked", "packed", "recompute")),
    ("decode", "Decode", "Milliseconds for one token of each sequence through all layers.", {
        "layers": lambda found: str(found["layers"]),
        **_columns("seconds", lambda spent, *_: f"{spent['median'] * 1e3:.3g}", "dense", "1 loop",
                   "mixed", "4 loops", "straightforward, 4 loops"),
        **_against("4 loops/1 loop"),
    }),
    ("model", "Whole model", "Tokens per second (in brackets: FLOPs per second against the dense "
     "model's).", {
        **LOOPS,
        **_columns("tokens_per_second", lambda rate, found, name: f"{rate:,.0f} "
                   f"({found['rate_per_flop'][name]['median']:.2f})", "dense", "2-loop", "4-loop",
                   "moe", "straightforward", "auto", "packed", "recompute", "masked"),
    }),
]  # fmt: skip
"""Kind of case, title, what the numbers are, and columns."""
