"""The documentation is a site without a dead link, and has every page."""

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    pytest.importorskip("mkdocs")
    folder = tmp_path_factory.mktemp("site")
    done = subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", str(folder)],
        cwd=ROOT, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return folder


def test_every_page_is_reached_from_every_other(site):
    home = (site / "index.html").read_text(encoding="utf-8")
    for page in (ROOT / "docs").glob("*.md"):
        if page.stem != "index":
            assert (site / page.stem / "index.html").is_file(), page
            assert f'href="{page.stem}/"' in home, page


def test_the_reference_is_made_of_docstrings(site):
    page = (site / "api" / "index.html").read_text(encoding="utf-8")
    for name in ("upcycle.upcycle", "ffn.config.Versatile", "budget.compute_budget"):
        assert f'id="versatileffn.{name}"' in page
    assert "the most often that a token may pass through the FFN" in page


def test_a_link_out_of_the_pages_leads_nowhere_wrong(site):
    page = (site / "evidence" / "index.html").read_text(encoding="utf-8")
    assert "results/tiny-3-seeds" in (ROOT / "docs" / "evidence.md").read_text(encoding="utf-8")
    assert 'href="../results' not in page
    assert 'href="../../results' not in page
