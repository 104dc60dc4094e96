"""The report: complete, self-contained, honest about what a number can carry."""

import dataclasses
import json
import re
from html.parser import HTMLParser
from pathlib import Path
from xml.etree import ElementTree

import pytest

from reproduce.rows import results, rows
from versatileffn.reproduce.figures import difference_curves, loss_curves
from versatileffn.reproduce.findings import findings
from versatileffn.reproduce.numbers import digits_for, probability, shown, signed
from versatileffn.reproduce.report import short_table
from versatileffn.reproduce.results import finite, summarize
from versatileffn.reproduce.run import render

FIGURES = ("loss-curves", "difference-curves", "quality-against-flops", "loops-per-layer",
           "expert-load")  # fmt: skip


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
            assert f"{record['nats_per_token']:.3f}" in text
        assert "fair control" in text
        assert "2.617" in text  # the paper's own, cited
        assert "cited, not reproduced" in text
        assert "versatileffn reproduce --scale tiny" in text
        assert "31 % of the whole pass that the paper makes" in text
        assert ("95 % over seeds" in text.replace("&nbsp;", " ")) == (seeds > 1)
        assert ("Holm" in text) == (seeds > 1)
    for name in FIGURES:
        assert f"(figures/{name}.svg)" in markdown


def test_committed_results_of_an_earlier_version_render_as_they_did(tmp_path: Path) -> None:
    """Their protocol describes FFNs with fields that a variant no longer has."""
    folder = Path(__file__).parents[2] / "results" / "tiny-3-seeds"
    render(json.loads((folder / "results.json").read_text()), tmp_path)
    assert (tmp_path / "report.md").read_text() == (folder / "report.md").read_text()


@pytest.mark.parametrize("start", ["base", None])
def test_models_from_scratch_were_not_continued(tmp_path: Path, start: str | None) -> None:
    shown = results()
    shown["protocol"]["arms"][0]["start"] = start
    render(shown, tmp_path)
    told = "every other model was" if start else "every model that isn't trained from scratch was"
    assert told in (tmp_path / "report.md").read_text()


def test_html_needs_nothing_but_itself(tmp_path: Path) -> None:
    page = render(results(), tmp_path).read_text()
    collector = Collector()
    collector.feed(page)
    assert collector.open == []
    assert len(collector.addresses) == 5
    assert all(address.startswith("data:image/svg+xml;base64,") for address in collector.addresses)
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


def test_pictures_follow_the_page_into_the_dark(tmp_path: Path) -> None:
    page = render(results(), tmp_path).read_text()
    assert "prefers-color-scheme: dark" in page
    for name in FIGURES:
        picture = (tmp_path / f"figures/{name}.svg").read_text()
        ElementTree.fromstring(picture)
        assert "@media(prefers-color-scheme:dark)" in picture
        assert "currentColor" in picture
        assert not re.search(r"#(000000|010203|ffffff)", picture)  # neither ink nor paper is fixed


def test_pictures_are_the_same_whenever_they_are_drawn(tmp_path: Path) -> None:
    for folder in ("one", "two"):
        (tmp_path / folder).mkdir()
        render(results(), tmp_path / folder)
    for name in FIGURES:
        one, two = (tmp_path / folder / f"figures/{name}.svg" for folder in ("one", "two"))
        assert one.read_bytes() == two.read_bytes()


def test_a_curve_that_coincides_with_the_control_hides_neither() -> None:
    made = [dataclasses.replace(row, curve=[(0, 5.0), (1000, 4.0)]) for row in rows(1)]
    lines = {line.get_label(): line for line in loss_curves(made).axes[0].lines}
    control, other = lines["Dense"], lines["Moe"]
    assert control.get_linewidth() > 3 * other.get_linewidth()
    drawn = loss_curves(made).axes[0].lines
    assert [line.get_label() for line in drawn].index("Dense") < 3  # below the others
    assert "Dense" not in [line.get_label() for line in difference_curves(made).axes[0].lines[1:]]


def test_differences_are_drawn_against_the_same_seed() -> None:
    axes = difference_curves(rows(3)).axes[0]
    drawn = {line.get_label(): line.get_ydata() for line in axes.lines}
    assert list(drawn["Versatile"]) == pytest.approx([0, 0.1, 0.1])


def test_one_seed_claims_no_significance() -> None:
    text = " ".join(findings(results(1)))
    assert "One seed has no error bar" in text
    assert "Holm" not in text


def test_several_seeds_are_judged_after_correction() -> None:
    made = results(3)
    for record in made["summary"]:
        if record["arm"] in ("4-loop", "moe"):
            p = {"4-loop": 0.0004, "moe": 0.06}[record["arm"]]
            record["difference"].update(mean=-0.09, low=-0.1, high=-0.08, p=p / 4, p_holm=p)
    text = " ".join(findings(made))
    assert "Holm's correction for 4 comparisons: a lower loss: 4-Loop (p < 0.001);" in text
    assert re.search(r"no difference shown: [^;.]*Moe", text)  # its own 95 % excludes zero
    assert "a higher loss: Versatile" in text


def test_sentences_dont_repeat_the_table() -> None:
    text = " ".join(findings(results(3)))
    for record in results(3)["summary"]:
        assert shown(record)["difference"] not in text
        assert f"{record['nats_per_token']:.3f}" not in text


def test_rounding_hides_no_exclusion() -> None:
    record = results(3)["summary"][2]
    record["difference"].update(mean=-0.0011, low=-0.0021, high=-0.0003)
    assert shown(record)["difference"] == "−0.0011 (−0.0021 to −0.0003)"
    record["difference"].update(high=-0.000004)
    assert shown(record)["difference"].endswith("to −0.000004)")
    record["difference"].update(mean=-0.0101, low=-0.02, high=0.0)
    assert shown(record)["difference"] == "−0.010 (−0.020 to 0.000)"


def test_a_model_that_diverged_is_told_and_not_drawn(tmp_path: Path) -> None:
    made = rows(1)
    made = [
        dataclasses.replace(row, after=None, layers=[], diverged="step 9: the loss is nan")
        if row.arm == "moe" else row for row in made
    ]  # fmt: skip
    content = {**results(1), "rows": finite(made), "summary": summarize(made)}
    page = render(content, tmp_path).read_text()
    assert "Moe (diverged: seed 0)" in page
    assert "Some training diverged" in page
    (line,) = [line for line in short_table(content).splitlines() if "Moe" in line]
    assert "| diverged |" in line


def test_a_run_without_reuse_still_reports(tmp_path: Path) -> None:
    only = results()
    keep = ("base", "dense")
    only["rows"] = [row for row in only["rows"] if row["arm"] in keep]
    only["summary"] = [record for record in only["summary"] if record["arm"] in keep]
    page = render(only, tmp_path).read_text()
    assert "Loops, layer by layer" not in page
    assert not (tmp_path / "figures/loops-per-layer.svg").exists()


@pytest.mark.parametrize(
    ("value", "text"),
    [(0.0123, "+0.012"), (-0.0123, "−0.012"), (-0.0001, "0.000"), (0.0, "0.000"), (None, "–")],
)
def test_signed_numbers(value: float | None, text: str) -> None:
    assert signed(value) == text


def test_digits() -> None:
    assert digits_for(0.5, None) == 3
    assert digits_for(0.5, -0.0002) == 4
    assert digits_for(1e-12) == 6
    assert [probability(p) for p in (None, 0.0, 0.0421, 1.0)] == ["–", "< 0.001", "0.042", "1"]
