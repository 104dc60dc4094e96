"""A results file as Markdown tables, and the page that shows them."""

import os
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

from benchmarks.goals import GOALS
from versatileffn.errors import ConfigError
from versatileffn.workspace.durable import write_bytes, writing
from versatileffn.workspace.manifest import read_record

FORMAT = 1
BEGIN, END = "<!-- bench: begin -->", "<!-- bench: end -->"
Found = dict[str, Any]
Cell = Callable[[Found], str]


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
            f"{path} is no whole results file of benchmarks.cpu ({type(error).__name__}: "
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
    """All tables."""
    goal_columns = ("#", "ratio", "goal", "worst median", "quartiles", "at", "kept by", "verdict")
    sections = [
        _header(results, source),
        "### Goals\n\n" + _table(goal_columns, [g.cells(results["cases"]) for g in GOALS]),
    ]
    for kind, title, note, columns in TABLES:
        rows = [
            [name.partition("/")[2], *(cell(case["found"]) for cell in columns.values())]
            for name, case in results["cases"].items()
            if case["inputs"]["kind"] == kind
        ]
        if rows:
            sections.append(f"### {title}\n\n{note}\n\n{_table(['case', *columns], rows)}")
    return "\n\n".join(sections)


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


def _loops(found: Found) -> str:
    return f"{found['mean_loops']:.2f}"


def _ratio(name: str, other: str) -> Cell:
    def cell(found: Found) -> str:
        got = found["ratios"].get(f"{name}/{other}")
        return f"{got['median']:.2f}" if got else ""

    return cell


def _units(name: str) -> Cell:
    """Time over dense, which the file has divided by E[ℓ̂]."""

    def cell(found: Found) -> str:
        got = found["ratios"].get(f"{name}/dense")
        return f"{got['median'] * found['mean_loops']:.2f} ({got['median']:.3f})" if got else ""

    return cell


def _saved(executor: str) -> Cell:
    def cell(found: Found) -> str:
        got = found["memory"].get(executor)
        return f"{got['saved_bytes_per_token'] / 1024:.1f}" if got else ""

    return cell


def _milliseconds(name: str) -> Cell:
    def cell(found: Found) -> str:
        got = found["seconds"].get(name)
        return f"{got['median'] * 1e3:.3g}" if got else ""

    return cell


def _rate(name: str) -> Cell:
    def cell(found: Found) -> str:
        rate = found["tokens_per_second"].get(name)
        return f"{rate:,.0f} ({found['rate_per_flop'][name]['median']:.2f})" if rate else ""

    return cell


def _each(names: str, cell: Callable[[str], Cell]) -> dict[str, Cell]:
    return {name: cell(name) for name in names.split(", ")}


TABLES: list[tuple[str, str, str, dict[str, Cell]]] = [
    ("inference", "Layer, inference", "Units of the dense FFN; in brackets, divided by E[ℓ̂].", {
        "E[ℓ̂]": _loops, **_each("packed, masked, straightforward", _units),
        "straightforward / packed": _ratio("straightforward", "packed"),
    }),
    ("training", "Layer, training step", "Units: a third of the dense training step.", {
        "E[ℓ̂]": _loops, "4 + 2·E[ℓ̂]": lambda found: f"{4 + 2 * found['mean_loops']:.2f}",
        **_each("packed, recompute, masked, straightforward", lambda n: _ratio(n, "dense")),
        "straightforward / packed": _ratio("straightforward", "packed"),
        "straightforward / recompute": _ratio("straightforward", "recompute"),
    }),
    ("memory", "Memory of a training step", "KiB saved for the backward pass, for each token.",
     _each("dense, straightforward, masked, packed, recompute", _saved)),
    ("decode", "Decode", "Milliseconds for one token of each sequence through all layers.", {
        "layers": lambda found: str(found["layers"]),
        **_each("dense, 1 loop, mixed, 4 loops", _milliseconds),
        "straightforward, 4 loops": _milliseconds("straightforward, 4 loops"),
        "4 loops / 1 loop": _ratio("4 loops", "1 loop"),
    }),
    ("model", "Whole model", "Tokens per second (in brackets: FLOPs per second against the dense "
     "model's).", {
        "E[ℓ̂]": _loops,
        **_each("dense, 2-loop, 4-loop, moe, straightforward", _rate),
        **_each("auto, packed, recompute, masked", _rate),
    }),
]  # fmt: skip
"""Kind of case, title, what the numbers are, and columns."""


def _table(columns: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [columns, ["---"] * len(columns), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)
