"""The report: complete, self-contained, honest about what a number can carry."""

import re
from html.parser import HTMLParser
from pathlib import Path

import pytest

from reproduce.rows import results
from versatileffn.reproduce.report import _signed, findings
from versatileffn.reproduce.run import render

PNG = b"\x89PNG\r\n\x1a\n"


class Collector(HTMLParser):
    """Tags that must be closed, and everything that a browser would fetch."""

    VOID = ("meta", "img", "br", "link", "hr")

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.addresses: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag not in self.VOID:
            self.open.append(tag)
        self.addresses += [value or "" for name, value in attrs if name in ("src", "href")]

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


@pytest.mark.parametrize("seeds", [1, 3])
def test_both_reports_carry_every_row(tmp_path: Path, seeds: int) -> None:
    page = render(results(seeds), tmp_path).read_text()
    markdown = (tmp_path / "report.md").read_text()
    for text in (page, markdown):
        for record in results(seeds)["summary"]:
            assert record["title"] in text
            assert f"{record['nats_per_token']['mean']:.3f}" in text
        assert "fair control" in text
        assert "2.617" in text  # the paper's own, cited
        assert "cited, not reproduced" in text
        assert "versatileffn reproduce --scale tiny" in text
    for name in ("loss-curves", "quality-against-flops", "loops-per-layer", "expert-load"):
        assert (tmp_path / f"figures/{name}.png").read_bytes().startswith(PNG)
        assert f"(figures/{name}.png)" in markdown
    assert ("95 % interval" in markdown) == (seeds > 1)


def test_html_needs_nothing_but_itself(tmp_path: Path) -> None:
    page = render(results(), tmp_path).read_text()
    collector = Collector()
    collector.feed(page)
    assert collector.open == []
    assert len(collector.addresses) == 4
    assert all(address.startswith("data:image/png;base64,") for address in collector.addresses)
    assert not re.search(r"url\(|@import|<script|<link", page)


def test_what_the_machine_calls_itself_is_escaped(tmp_path: Path) -> None:
    page = render(results(), tmp_path).read_text()
    assert "CPU &lt;model &amp; co&gt;" in page


def test_markdown_tables_have_equal_columns(tmp_path: Path) -> None:
    render(results(3), tmp_path)
    blocks = re.findall(r"(?:^\|.*\n)+", (tmp_path / "report.md").read_text(), re.MULTILINE)
    assert len(blocks) == 3
    for block in blocks:
        assert len({line.count("|") for line in block.strip().splitlines()}) == 1


def test_one_seed_claims_no_significance() -> None:
    text = " ".join(findings(results(1)))
    assert "One seed has no error bar" in text
    assert "interval is" not in text


def test_several_seeds_say_whether_the_interval_holds_zero() -> None:
    sentences = {s.split(" ends ")[0]: s for s in findings(results(3)) if " ends " in s}
    assert "excludes zero" in sentences["4-Loop"]
    noisy = results(3)
    for record in noisy["summary"]:
        if record["arm"] == "4-loop":
            record["difference"].update(low=-0.2, high=0.02)
    sentences = {s.split(" ends ")[0]: s for s in findings(noisy) if " ends " in s}
    assert "no difference shown" in sentences["4-Loop"]


def test_a_run_without_reuse_still_reports(tmp_path: Path) -> None:
    only = results()
    keep = ("base", "dense")
    only["rows"] = [row for row in only["rows"] if row["arm"] in keep]
    only["summary"] = [record for record in only["summary"] if record["arm"] in keep]
    page = render(only, tmp_path).read_text()
    assert "Loops, layer by layer" not in page
    assert not (tmp_path / "figures/loops-per-layer.png").exists()


@pytest.mark.parametrize(
    ("value", "text"),
    [(0.0123, "+0.012"), (-0.0123, "−0.012"), (-0.0001, "0.000"), (0.0, "0.000"), (None, "–")],
)
def test_signed_numbers(value: float | None, text: str) -> None:
    assert _signed(value) == text
