"""docs/looking.md: its commands are those that were run, its numbers the committed ones."""

import csv
import json
import re
import shlex
from pathlib import Path

import pytest
from typer.main import get_command

from versatileffn.analysis.dial_clock import WORKS, budget_name
from versatileffn.cli.analyze import View
from versatileffn.cli.main import app

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "results" / "looking"
PAGE = (ROOT / "docs" / "looking.md").read_text(encoding="utf-8")
TEXT = " ".join(PAGE.split())
BLOCKS = [block.split("```")[0].splitlines() for block in PAGE.split("```sh\n")[1:]]
BEGIN, END = "<!-- dial: results/looking/dial.json -->\n", "<!-- end of dial -->"


def read(name: str) -> dict:
    return json.loads((RESULTS / f"{name}.json").read_text(encoding="utf-8"))


def signed(value: float) -> str:
    return f"{value:+.3f}".replace("-", "−")


def run_commands() -> list[list[str]]:
    """Those of the second block, its names filled in."""
    assigned = dict(re.findall(r"(MODEL|TOKENS)=(\S+)", PAGE))
    lines = [line for line in BLOCKS[1] if line.startswith("versatileffn")]
    filled = (re.sub(r"\$(\w+)", lambda name: assigned[name[1]], line) for line in lines)
    return [shlex.split(line) for line in filled]


@pytest.mark.parametrize("line", [*BLOCKS[0], *map(shlex.join, run_commands())])
def test_a_command_parses(line) -> None:
    program, verb, *arguments = shlex.split(line, comments=True)
    assert program == "versatileffn"
    get_command(app).commands[verb].make_context(verb, arguments)


def test_every_view_has_a_command() -> None:
    assert {shlex.split(line)[2] for line in BLOCKS[0]} == {view.value for view in View}


def test_the_commands_are_those_that_were_run_on_one_model() -> None:
    records = [read(name) for name in ("loops", "similarity", "tokens", "dial")]
    run = [shlex.split(record["command"]) for record in (read("trained"), *records)]
    shown = run_commands()
    assert all([part for part in each if part != "--overwrite"] in shown for each in run)
    assert len({record["model_sha256"] for record in records}) == 1


def table(record: dict) -> str:
    """The dial's, as Markdown."""
    lines = ["| budget | loops | held-out nats | FFN MFLOPs | prefill, × dense | decode, × dense |"]
    lines.append("|---|---:|---:|---:|---:|---:|")
    for point in [*record["curve"], *record["caps"]]:
        clock = [record["clock"][work]["of_dense"][budget_name(point)] for work in WORKS]
        if "max_loops" in point:
            name = f"`max_loops={point['max_loops']}`"
        else:
            name = f"`mean_loops`, penalty {point['penalty']:+.1f}" if point["penalty"] else "none"
        cells = [
            name.replace("-", "−"), f"{point['mean_loops']:.2f}", f"{point['nats_per_token']:.3f}",
            f"{point['ffn_flops_per_token'] / 1e6:.2f}",
            *("{median:.2f} ({low:.2f}–{high:.2f})".format(**each) for each in clock),
        ]  # fmt: skip
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def test_the_dials_table_is_the_committed_one() -> None:
    assert PAGE.split(BEGIN)[1].split(END)[0] == table(read("dial"))


def test_what_is_said_of_the_dial_is_so() -> None:
    record, trained = read("dial"), {row["arm"]: row for row in read("trained")["rows"]}
    one, two, *_ = caps = record["caps"]
    free = next(point for point in record["curve"] if not point["penalty"])
    some = {"one": one, "two": two, "penalty": record["curve"][7]}
    lost = {name: p["nats_per_token"] - free["nats_per_token"] for name, p in some.items()}
    assert one["ffn_flops_per_token"] == trained["dense"]["flops_executed"]
    assert f"is {lost['one']:.2f} nats behind itself" in TEXT
    dense, own = (trained[arm]["after"]["nats_per_token"] for arm in ("dense", "versatile"))
    assert f"{dense:.3f} nats on the whole held-out split, this one {own:.3f} uncapped" in TEXT
    saved = 1 - two["ffn_flops_per_token"] / free["ffn_flops_per_token"]
    said = f"at most two loops, {two['mean_loops']:.2f} in the mean, lose {lost['two']:.2f} nats"
    assert f"{said} and save {saved:.0%}".replace("%", " %") in TEXT
    mean = record["curve"][7]["mean_loops"]
    assert f"a mean of {mean:.2f} loses {lost['penalty']:.2f}" in TEXT
    clock = [
        [f"{record['clock'][work]['of_dense'][budget_name(p)]['median']:.2f}" for p in (one, free)]
        for work in WORKS
    ]
    assert "({} of dense at most one loop, {} uncapped)".format(*clock[0]) in TEXT
    assert "at batch 1 ({} and {})".format(*clock[1]) in TEXT
    best = min([*record["curve"], *caps], key=lambda point: point["nats_per_token"])
    assert best["nats_per_token"] > free["nats_per_token"] - 0.005
    assert record["curve"][0]["nats_per_token"] > free["nats_per_token"] + 0.1


def test_what_is_said_of_loops_is_so() -> None:
    tokens, loops = read("tokens"), read("loops")
    rows = tokens["found"]["correlations"]
    every = rows[-1]
    assert (
        f"ρ = {signed(every['next'])}, and not with the token's own, {signed(every['own'])}" in TEXT
    )
    for kind in ("next", "own"):
        assert ", ".join(signed(row[kind]) for row in rows[:-1]) in TEXT
    assert f"{tokens['tokens']:,} tokens" in TEXT
    assert f"{loops['tokens']:,} tokens" in TEXT
    for kind in ("positions", "frequencies"):
        means = [group["mean_loops"] for group in loops["found"][kind]]
        assert max(means) - min(means) <= 0.25
    parameters = {row["arm"]: row["parameters"] for row in read("trained")["rows"]}
    assert f"{parameters['versatile']:,} parameters" in TEXT


def test_what_is_said_of_the_smaller_model_is_so() -> None:
    one, two, _ = read("smaller")["found"]["correlations"]
    assert one["mean"] == 1
    own, following = signed(two["own"]), signed(two["next"])
    assert f"ρ = {own} with the token's own surprise and {following} with the next one's" in TEXT


def test_what_is_said_of_words_and_pathways_is_so() -> None:
    lines = (RESULTS / "words.csv").read_text(encoding="utf-8").splitlines()[1:]
    found = {word: (int(count), float(mean)) for word, count, _, mean, *_ in csv.reader(lines)}
    assert [found[word] for word in ("def", "import", "else")] == [(457, 3), (135, 3), (160, 2)]
    assert "457 `def` and 135 `import` takes three loops, each of 160 `else` two" in TEXT
    layers = read("similarity")["found"]["layers"]
    for measure in ("cosine", "cosine_updates"):
        assert ", ".join(f"{layer[measure]:.3f}" for layer in layers) in TEXT
    assert ", ".join(f"{100 * layer['width_share']:.1f} %" for layer in layers) in TEXT
