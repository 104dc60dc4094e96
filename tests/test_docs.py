"""What the documents say was measured is what the committed JSON holds."""

import re
from pathlib import Path

import pytest

from benchmarks import one_loop
from benchmarks.report import BEGIN, END, markdown, read_results
from versatileffn.workspace.manifest import read_record

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
RESULTS = ROOT / "benchmarks" / "results"
PAGE = (DOCS / "performance.md").read_text(encoding="utf-8")


def test_the_performance_page_is_the_committed_run():
    shown = PAGE.split(BEGIN)[1].split(END)[0].strip()
    results = read_results(RESULTS / "cpu.json")
    assert shown == markdown(results, Path("../benchmarks/results/cpu.json")).strip()


@pytest.mark.parametrize("row", read_record(RESULTS / "where_time_goes.json")["cases"])
def test_where_the_time_goes_is_the_committed_profile(row):
    shares = " | ".join(f"{row[group]:.0%}" for group in ("products", "ordering", "else"))
    bound = f"{row['rows']:.2f}" if "rows" in row else "–"
    names = ("case", "d_model", "tokens", "dtype", "loops", "executor")
    assert f"| {' | '.join(str(row[name]) for name in names)} | {shares} | {bound} |" in PAGE


def test_what_one_loop_costs_is_the_committed_measurement():
    record = one_loop.recorded()
    assert len(record["runs"]) == 8
    assert one_loop.BEGIN + one_loop.markdown(record) + one_loop.END in PAGE
    for row in record["before"]["runs"]:
        if row["work"] == "decode":
            assert f"{row['ratio']['median']:.3f}" in PAGE


@pytest.mark.parametrize("page", sorted(DOCS.glob("*.md")), ids=lambda page: page.name)
def test_every_file_that_a_page_links_to_exists(page):
    for target in re.findall(r"\]\((?!https?:)([^)#]+)", page.read_text(encoding="utf-8")):
        assert (page.parent / target).exists(), target
