"""What docs/evidence.md quotes is what the committed results hold."""

import json
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "docs" / "evidence.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"<!-- depth: (\S+) -->\n(.*?)<!-- end of depth -->", PAGE, re.DOTALL)


def shown(arm: dict) -> str:
    """An arm's row of the page."""
    exact = arm["mean_exact"]
    loops = " ".join(f"{value:.1f}" for value in arm["loops"] or ()) or "–"
    return (
        f"| {arm['title']} | {arm['flops_executed'] / 1000:.1f} | {exact['mean']:.3f} "
        f"({exact['low']:.3f} to {exact['high']:.3f}) | {loops} |"
    )


def test_the_page_quotes_the_depth_task():
    assert BLOCKS


def test_the_readme_has_rows_of_that_table():
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    rows = readme.split("## Where it pays")[1].split("|---|---:|---:|---|\n")[1].split("\n\n")[0]
    assert set(rows.splitlines()) <= set(BLOCKS[0][1].splitlines())


@pytest.mark.parametrize(("folder", "block"), BLOCKS)
def test_each_row_is_the_committed_one(folder, block):
    results = json.loads((ROOT / folder / "results.json").read_text())
    known = {shown(arm) for arm in results["summary"]["arms"]}
    rows = block.strip().splitlines()[2:]
    assert len(rows) > 2
    assert set(rows) <= known
    assert len(results["seeds"]) == 10


def test_the_confirmed_difference_is_the_committed_one():
    results = json.loads((ROOT / "results/depth-confirm-10-seeds/results.json").read_text())
    (found,) = (
        each
        for each in results["summary"]["comparisons"]
        if (each["first"], each["second"]) == ("paper", "dense-4f")
    )
    quoted = f"+{found['mean']:.3f} (+{found['low']:.3f} to +{found['high']:.3f})"
    for page in ("README.md", "docs/evidence.md", "docs/depth.md"):
        assert quoted in re.sub(r"\s+", " ", (ROOT / page).read_text(encoding="utf-8")), page
    assert found["p_holm"] < 0.001


def difference(each: dict) -> str:
    """A difference as the page writes it."""
    signed = (f"{each[name]:+.3f}".replace("-", "−") for name in ("mean", "low", "high"))
    return "{} ({} to {})".format(*signed)


OPTIONS = json.loads((ROOT / "results/depth-options-8-seeds/results.json").read_text())["summary"]


@pytest.mark.parametrize("each", OPTIONS["comparisons"], ids=lambda each: each["first"])
def test_every_option_has_its_row(each):
    assert difference(each) in PAGE
    assert each["p_holm"] > 0.05  # or the page would say that it is left after correction


def test_facts_and_the_unseen_depth_are_the_committed_ones():
    found = {}
    for name in ("facts", "unseen"):
        summary = json.loads((ROOT / f"results/depth-{name}-3-seeds/results.json").read_text())
        found[name] = {arm["arm"]: arm for arm in summary["summary"]["arms"]}
        if name == "facts":
            against = summary["summary"]["comparisons"][0]
    stored = [found["facts"][arm]["mean_exact"]["mean"] for arm in ("dense-4f", "dense", "paper")]
    assert [f"{value:.3f}" for value in stored] == ["1.000", "0.937", "0.831"]
    text = re.sub(r"\s+", " ", PAGE)
    assert "(1.000), dense with F = 64 0.937, the paper's form 0.831; 0.168 less" in text
    low, high = -against["high"], -against["low"]
    assert f"{-against['mean']:.3f} less than F = 256 ({low:.3f} to {high:.3f}, p = 0.03" in text
    assert round(against["p_holm"], 2) == 0.03
    deepest = {arm: record["exact"][4] for arm, record in found["unseen"].items()}
    told = sorted(r["exact"][4] for r in summary["rows"] if r["arm"] == "prescribed")
    each = ", ".join(f"{value:.2f}" for value in told)
    assert f"{deepest.pop('prescribed'):.2f} ({each})" in text
    assert max(deepest.values()) < 0.045
    assert f"{found['unseen']['paper']['loops'][4]:.1f}" == "1.4"


SUITES = ("results/language", "results/language-0.3m")


def suite(folder: str = SUITES[0]) -> dict:
    return json.loads((ROOT / folder / "results.json").read_text())


def signed(difference: dict) -> str:
    """A mean and its interval; bold where the verdict is that there is a difference."""
    text = "{:+.3f} ({:+.3f} to {:+.3f})".format(
        *(difference["difference"][name] for name in ("mean", "low", "high"))
    ).replace("-", "−")
    return f"**{text}**" if difference["verdict"] in ("lower", "higher") else text


@pytest.mark.parametrize("folder", SUITES)
def test_the_language_suite_is_the_committed_one(folder):
    asked = [("tokens", "from scratch"), ("flops", "from scratch"), ("time", "from scratch"),
             ("tokens", "continued"), ("flops", "continued")]  # fmt: skip
    found = {}
    for each in suite(folder)["comparisons"]:
        if each["question"] != "curriculum":
            title = each["title"].removesuffix(", from scratch")
            found.setdefault(title, {})[each["question"], each["phase"]] = each
    columns = [column for column in asked if any(column in of for of in found.values())]
    rows = [
        f"| {title} | " + " | ".join(signed(of[c]) if c in of else "–" for c in columns) + " |"
        for title, of in found.items()
    ]
    block = PAGE.split(f"<!-- language: {folder} -->\n")[1].split("\n<!-- end")[0]
    assert block.splitlines()[0].count("|") == len(columns) + 2
    assert block.splitlines()[2:] == rows
    assert len(rows) > 6


def test_what_the_page_says_of_the_language_suite():
    content = suite()
    assert len(content["seeds"]) == 3
    assert content["missing"] == []
    verdicts = {}
    for each in content["comparisons"]:
        verdicts.setdefault((each["question"], each["phase"]), {})[each["arm"]] = each["verdict"]
    for phase in ("from scratch", "continued"):
        lower = {arm for arm, verdict in verdicts["tokens", phase].items() if verdict == "lower"}
        assert lower <= {"moe"}
    assert set(verdicts["curriculum", "all"].values()) == {"none"}
    late = {e["arm"]: f"{e['difference']['mean']:.2f}" for e in content["comparisons"]
            if e["question"] == "time"}  # fmt: skip
    assert late.pop("scratch-moe") == "0.02"
    assert min(late.values()) == late["scratch-2-loop"] == "0.07"
    assert max(late.values()) == late["scratch-4-loop"] == "0.17"
    assert late["scratch-versatile"] == "0.13"
    (longer,) = (a for a in content["summary"] if a["arm"] == "scratch-dense-longer")
    (moe,) = (a for a in content["summary"] if a["arm"] == "moe")
    assert round(longer["difference"]["mean"], 2) == -0.18
    assert f"{-moe['difference']['mean']:.3f}" == "0.037"
    assert round(moe["parameters"] / content["summary"][0]["parameters"], 1) == 1.5


def test_what_the_page_says_of_the_larger_size():
    content = suite("results/language-0.3m")
    assert len(content["seeds"]) == 3
    assert content["missing"] == []
    found = {}
    for each in content["comparisons"]:
        found.setdefault((each["question"], each["phase"]), {})[each["arm"]] = each
    verdicts = {
        asked: {arm: each["verdict"] for arm, each in of.items()} for asked, of in found.items()
    }
    assert set(verdicts["tokens", "from scratch"].values()) == {"none"}
    lower = {arm for arm, verdict in verdicts["tokens", "continued"].items() if verdict == "lower"}
    assert lower == {"2-loop", "moe"}
    assert set(verdicts["curriculum", "all"].values()) == {"none"}
    continued = dict(verdicts["flops", "continued"])
    assert continued.pop("moe") == "none"
    assert set(continued.values()) == {"higher"}
    behind = [found["flops", "continued"][arm]["difference"]["mean"] for arm in continued]
    assert (round(min(behind), 2), round(max(behind), 2)) == (0.03, 0.10)
    scratch = verdicts["flops", "from scratch"]
    shown = {arm for arm, verdict in scratch.items() if verdict == "higher"}
    assert shown == {"scratch-4-loop", "scratch-versatile-learned-0"}
    time = found["time", "from scratch"]
    twice = json.loads((ROOT / "results/language-0.3m/times.json").read_text())["again"]
    moved = [each["after"] / each["before"] - 1 for each in twice if each["before"]]
    assert len(moved) == 5
    assert f"{max(map(abs, moved)):.1f}" == "0.1"
    assert {arm for arm, each in time.items() if each["verdict"] != "none"} == {
        "scratch-versatile", "scratch-versatile-learned-0",
    }  # fmt: skip
    late = {arm: f"{each['difference']['mean']:.2f}" for arm, each in time.items()}
    assert late.pop("scratch-moe") == "-0.03"
    assert late["scratch-versatile"] == "0.07"
    assert (min(late.values()), max(late.values())) == ("0.00", "0.08")
    assert (late["scratch-2-loop"], late["scratch-versatile-learned-0"]) == ("0.00", "0.08")
    (longer,) = (row for row in content["summary"] if row["arm"] == "scratch-dense-longer")
    assert f"{longer['difference']['mean']:.2f}" == "-0.13"
    two, moe = (found["tokens", "continued"][arm]["difference"] for arm in ("2-loop", "moe"))
    assert (
        f"{-two['mean']:.3f} ({-two['high']:.3f} to {-two['low']:.3f})" == "0.004 (0.003 to 0.006)"
    )
    assert f"{-moe['mean']:.3f}" == "0.026"
    text = re.sub(r"\s+", " ", PAGE)
    assert "0.07 nats (2-Loop) to 0.17 (4-Loop) at 0.13M" in text
    assert "0.00 (2-Loop) to 0.08 (learned gains from 0) at 0.29M" in text
    for arm, phase in (("versatile", "continued"), ("scratch-versatile", "from scratch")):
        assert difference(found["tokens", phase][arm]["difference"]) in text


def test_fewer_loops_on_text_are_the_committed_ones():
    folder = ROOT / "results/budgets-tiny-3-seeds"
    block = PAGE.split("<!-- budgets: results/budgets-tiny-3-seeds -->\n")[1].split("\n<!-- end")[0]
    assert block in (folder / "report.md").read_text(encoding="utf-8")
    content = json.loads((folder / "results.json").read_text())
    plain, consistent = content["budgets"]["arms"]
    cost = [arm["loss"]["1"] - arm["loss"]["4"] for arm in (consistent, plain)]
    assert [f"{nats:.2f}" for nats in cost] == ["0.02", "0.16"]
    assert difference(consistent["difference"]["1"]) + ", p = 0.069" in PAGE.replace(
        " nats (", " ("
    )
    assert round(consistent["difference"]["1"]["p_holm"], 3) == 0.069
    assert len(content["seeds"]) == 3


def test_the_depth_task_with_text_is_the_committed_one():
    content = json.loads((ROOT / "results/depth-text-3-seeds/results.json").read_text())
    (against,) = content["summary"]["comparisons"]
    for page in (PAGE, (ROOT / "docs/depth.md").read_text(encoding="utf-8")):
        assert difference(against) in re.sub(r"\s+", " ", page)
    means = {
        arm: [round(sum(r["exact"]) / 5, 2) for r in content["rows"] if r["arm"] == arm]
        for arm in ("paper", "dense-4f")
    }
    assert sorted(means["paper"]) == [0.81, 1.0, 1.0]
    assert sorted(means["dense-4f"]) == [0.93, 0.93, 0.94]
