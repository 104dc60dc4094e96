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
