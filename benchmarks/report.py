"""Results as tables: on the terminal, and in a Markdown file between its markers."""

import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from rich.table import Table

from versatileffn.bench.goals import Goal, flops_agree, goals
from versatileffn.bench.results import Results
from versatileffn.errors import ConfigError
from versatileffn.files import beside, writing

BEGIN, END = "<!-- bench: begin -->", "<!-- bench: end -->"
VERDICT = {True: "met", False: "**missed**", None: "not measured"}
COLUMNS = ("#", "ratio", "goal", "worst median", "quartiles", "at", "kept by", "verdict")


def goals_table(results: Results) -> Table:
    """The goals, for a terminal."""
    quick = " (sizes of --quick: they say nothing)" if results.content["settings"]["quick"] else ""
    table = Table(title=f"Goals{quick}", title_justify="left")
    shown = [i for i, column in enumerate(COLUMNS) if column not in ("quartiles", "at")]
    for index in shown:
        table.add_column(COLUMNS[index], no_wrap=COLUMNS[index] != "ratio")
    for goal in goals(results):
        style = {True: "green", False: "red", None: "dim"}[goal.met]
        cells = [cell.strip("*") for cell in _goal_cells(goal)]
        table.add_row(*(cells[index] for index in shown), style=style)
    return table


def write_into(docs: Path, results: Results, source: Path) -> None:
    """Replace what stands between the markers of a Markdown file.

    Args:
        docs: the file; it must have both markers, or not exist.
        results: what to show.
        source: the JSON file, which is linked.

    Raises:
        ConfigError: the file lacks the markers, or can't be written.
    """
    text = docs.read_text(encoding="utf-8") if docs.exists() else f"{BEGIN}\n{END}\n"
    before, begin, rest = text.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end:
        raise ConfigError(f"{docs} has no place for the tables: add the lines {BEGIN} and {END}")
    with writing(docs):
        docs.parent.mkdir(parents=True, exist_ok=True)
        partial = beside(docs)
        link = Path(os.path.relpath(source, docs.parent))
        partial.write_text(f"{before}{BEGIN}\n{markdown(results, link)}\n{END}{after}", "utf-8")
        partial.replace(docs)


def markdown(results: Results, source: Path) -> str:
    """All tables."""
    sections = [
        _header(results, source),
        "### Goals\n\n" + _table(COLUMNS, map(_goal_cells, goals(results))),
        _section("Layer, inference", "Units of the dense FFN; in brackets, divided by E[ℓ̂].",
                 _inference(results)),
        _section("Layer, the alternatives", "Units of the dense FFN; ours at E[ℓ̂] = 2.5.",
                 _others(results)),
        _section("Layer, training step", "Units: a third of the dense training step.",
                 _training(results)),
        _section("Memory of a training step", "Saved for the backward pass, for each token; peak "
                 "of the whole step beyond what was held before.", _memory(results)),
        _section("Decode", "Milliseconds for one token of each sequence through all layers.",
                 _decode(results)),
        _section("Whole model", "Tokens per second (in brackets: FLOPs per second against the "
                 "dense model's).", _models(results)),
        _section("The allocator", "Milliseconds with glibc's defaults, and as measured here.",
                 _allocator(results)),
    ]  # fmt: skip
    return "\n\n".join(section for section in sections if section)


def _header(results: Results, source: Path) -> str:
    content, settings = results.content, results.content["settings"]
    commands = ", ".join(f"`{command}`" for command in content["commands"])
    agree, counted = flops_agree(results)
    versions = ", ".join(f"{name} {version}" for name, version in settings["versions"].items())
    sources = len({case["source_sha256"] for case in content["cases"].values()})
    lines = [
        f"{commands}, {content['created'][:10]}: {settings['machine']['name']}, "
        f"{settings['threads']} threads, seed {settings['seed']}; {versions}. "
        f"[{source.name}]({source.as_posix()}) has every number.",
        f"Executed matrix-product FLOPs equal the planned ones in {agree} of {counted} executions.",
    ]
    if settings["quick"]:
        lines.append("**Sizes of `--quick`: these numbers show that it works, and no speed.**")
    if sources > 1:
        lines.append(f"The cases were measured with {sources} states of the sources.")
    return "\n".join(lines)


def _goal_cells(goal: Goal) -> list[str]:
    limit = f"{'≤' if goal.at_most else '≥'} {goal.limit:g}"
    row = goal.worst
    if row is None:
        return [str(goal.number), goal.title, limit, "–", "–", "–", "–", VERDICT[None]]
    quartiles = "–" if row.low is None else f"{row.low:.3f} to {row.high:.3f}"
    kept = f"{sum(map(goal.reached, goal.rows))} of {len(goal.rows)}"
    return [str(goal.number), goal.title, limit, f"{row.value:.3f}", quartiles, row.case, kept,
            VERDICT[goal.met]]  # fmt: skip


Rows = tuple[Sequence[str], list[list[str]]]


def _inference(results: Results) -> Rows:
    def cell(found: dict[str, Any], name: str) -> str:
        got = found["ratios"].get(f"{name}/dense")
        return f"{got['median'] * found['mean_loops']:.2f} ({got['median']:.3f})" if got else ""

    names = ("packed", "masked", "straightforward")
    rows = [
        [_place(name), f"{found['mean_loops']:.2f}", *(cell(found, n) for n in names),
         _ratio(found, "straightforward/packed")]
        for name, (_, found) in results.found("inference").items()
    ]  # fmt: skip
    return ("case", "E[ℓ̂]", *names, "straightforward / packed"), rows


def _others(results: Results) -> Rows:
    names = ("packed", "2-loop", "4-loop", "moe", "moe-transformers")
    rows = [
        [_place(name), *(_ratio(found, f"{n}/dense") for n in names)]
        for name, (_, found) in results.found("others").items()
    ]
    return ("case", *names), rows


def _training(results: Results) -> Rows:
    names = ("packed", "recompute", "masked", "straightforward")
    rows = [
        [_place(name), f"{found['mean_loops']:.2f}", f"{4 + 2 * found['mean_loops']:.2f}",
         *(_ratio(found, f"{n}/dense") for n in names),
         *(_ratio(found, f"straightforward/{n}") for n in names[:2])]
        for name, (_, found) in results.found("training").items()
    ]  # fmt: skip
    faster = [f"straightforward / {n}" for n in names[:2]]
    return ("case", "E[ℓ̂]", "4 + 2·E[ℓ̂]", *names, *faster), rows


def _memory(results: Results) -> Rows:
    rows = [
        [_place(name), executor,
         f"{saved['saved_values_per_token'] / settings['d_model']:.2f}·D",
         f"{saved['saved_bytes_per_token'] / 1024:.1f} KiB",
         f"{saved['peak_bytes'] / 2**20:.0f} MiB" if saved["peak_bytes"] is not None else ""]
        for name, (settings, found) in results.found("memory").items()
        for executor, saved in found["memory"].items()
    ]  # fmt: skip
    return ("case", "executor", "values", "bytes", "peak of the step"), rows


def _decode(results: Results) -> Rows:
    names = ("dense", "1 loop", "mixed", "4 loops", "straightforward, 4 loops")
    rows = [
        [_place(name), str(found["layers"]), *(_milliseconds(found, n) for n in names),
         _ratio(found, "4 loops/1 loop")]
        for name, (_, found) in results.found("decode").items()
    ]  # fmt: skip
    return ("case", "layers", *names, "4 loops / 1 loop"), rows


def _models(results: Results) -> Rows:
    cases = results.found("model")
    names = list(dict.fromkeys(name for _, f in cases.values() for name in f["tokens_per_second"]))

    def cell(found: dict[str, Any], name: str) -> str:
        rate = found["tokens_per_second"].get(name)
        return f"{rate:,.0f} ({found['rate_per_flop'][name]['median']:.2f})" if rate else ""

    rows = [
        [_place(name), f"{found['mean_loops']:.2f}", *(cell(found, n) for n in names)]
        for name, (_, found) in cases.items()
    ]
    return ("case", "E[ℓ̂]", *names), rows


def _allocator(results: Results) -> Rows:
    found = {name.rpartition("/")[2]: f for name, (_, f) in results.found("allocator").items()}
    if set(found) != {"tuned", "default"}:
        return (), []
    rows = [
        [what, *(_milliseconds(found[e], what) for e in ("default", "tuned")),
         f"{found['default']['seconds'][what]['median'] / row['median']:.2f}"]
        for what, row in found["tuned"]["seconds"].items()
    ]  # fmt: skip
    return ("work", "default", "as measured", "default / as measured"), rows


def _place(case: str) -> str:
    return case.partition("/")[2]


def _ratio(found: dict[str, Any], name: str) -> str:
    got = found["ratios"].get(name)
    return f"{got['median']:.2f}" if got else ""


def _milliseconds(found: dict[str, Any], name: str) -> str:
    got = found["seconds"].get(name)
    return f"{got['median'] * 1e3:.3g}" if got else ""


def _section(title: str, note: str, rows: Rows) -> str:
    return f"### {title}\n\n{note}\n\n{_table(*rows)}" if rows[1] else ""


def _table(columns: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [columns, ["---"] * len(columns), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)
