"""What the documents say was measured is what the committed JSON holds."""

from pathlib import Path

import pytest

from versatileffn.bench.report import BEGIN, END, markdown
from versatileffn.bench.results import Results

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"


def test_the_performance_page_is_the_committed_run():
    source = ROOT / "benchmarks" / "results" / "cpu.json"
    text = (DOCS / "performance.md").read_text(encoding="utf-8")
    shown = text.split(BEGIN)[1].split(END)[0].strip()
    assert shown == markdown(Results.read(source), Path("../benchmarks/results/cpu.json")).strip()


@pytest.mark.parametrize("page", sorted(DOCS.glob("*.md")), ids=lambda page: page.name)
def test_every_file_that_a_page_links_to_exists(page):
    import re

    for target in re.findall(r"\]\((?!https?:)([^)#]+)", page.read_text(encoding="utf-8")):
        assert (page.parent / target).exists(), target
