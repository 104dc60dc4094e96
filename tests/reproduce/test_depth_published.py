"""The depth experiment's committed report is what its committed results say, and so is its page."""

import json
from pathlib import Path

import pytest

from versatileffn.reproduce.depth.report import render

ROOT = Path(__file__).parents[2]
PUBLISHED = sorted((ROOT / "results").glob("depth-*"))


@pytest.mark.parametrize("folder", PUBLISHED, ids=lambda folder: folder.name)
def test_the_report_is_of_these_results(folder: Path, tmp_path: Path) -> None:
    results = json.loads((folder / "results.json").read_text())
    render(results, tmp_path)
    report = (folder / "report.md").read_text()
    assert (tmp_path / "report.md").read_text() == report
    table = report.split("## Results\n\n")[1].split("\n\n")[0]
    assert table in (ROOT / "docs" / "depth.md").read_text()
