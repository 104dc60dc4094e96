"""`results.json` as a page: Markdown for reading beside code, one self-contained HTML file."""

import base64
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined, select_autoescape

from versatileffn.files import beside
from versatileffn.reproduce.paper import CITED_354M
from versatileffn.reproduce.results import BASE, CONTROL

CAPTIONS = {
    "loss-curves": "Held-out loss along continued training. Every model starts from the same base "
    "checkpoint and sees the same windows in the same order, with a new optimizer and the learning "
    "rate back at its peak. A curve that begins above the cut axis was shocked by the conversion.",
    "quality-against-flops": "Held-out loss after training against the FFN work that one token "
    "really costs at inference. Lower left is better.",
    "loops-per-layer": "How often tokens pass through the shared FFN, layer by layer, on held-out "
    "text.",
    "expert-load": "How evenly the routers spread tokens over the experts on held-out text.",
}
MINUS = "\N{MINUS SIGN}"
MISSING = "–"


def write_report(results: Mapping[str, Any], figures: Mapping[str, Path], folder: Path) -> Path:
    """Write `report.md` and `report.html`.

    Args:
        results: the content of `results.json`.
        figures: PNG files by name, all below `folder`; the HTML carries them inside itself.
        folder: where the two files go.

    Returns:
        Path of the HTML report.
    """
    environment = Environment(
        loader=PackageLoader("versatileffn.reproduce"),
        autoescape=select_autoescape(["html.j2"]),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters.update(
        fixed=_fixed, millions=_millions, signed=_signed, thousands=_thousands, minutes=_minutes
    )
    shared = {
        "results": results,
        "findings": findings(results),
        "cited": CITED_354M,
        "captions": CAPTIONS,
        "base": BASE,
        "control": CONTROL,
    }
    links = {name: Path(os.path.relpath(path, folder)).as_posix() for name, path in figures.items()}
    inlined = {name: data_uri(path) for name, path in figures.items()}
    markdown = environment.get_template("report.md.j2").render(**shared, figures=links)
    page = environment.get_template("report.html.j2").render(**shared, figures=inlined)
    for name, text in (("report.md", markdown), ("report.html", page)):
        partial = beside(folder / name)
        partial.write_text(text, encoding="utf-8")
        partial.replace(folder / name)
    return folder / "report.html"


def findings(results: Mapping[str, Any]) -> list[str]:
    """What the rows say and don't say, in sentences; no claim that the numbers can't carry."""
    by_arm = {record["arm"]: record for record in results["summary"]}
    seeds = len(results["seeds"])
    sentences = []
    if BASE in by_arm and CONTROL in by_arm:
        change = _nats(by_arm[CONTROL]) - _nats(by_arm[BASE])
        verb = "lowers" if change < 0 else "raises"
        sentences.append(
            f"Continuing the dense model on the same data {verb} its held-out loss by "
            f"{abs(change):.3f} nats. That part of any gain over the base is the extra training, "
            "not the architecture, so every other model is compared with the continued one."
        )
    others = [r for r in results["summary"] if r["difference"] is not None and r["arm"] != BASE]
    for record in others:
        sentences.append(_difference_sentence(record, seeds))
    if seeds < 2:
        sentences.append(
            "One seed has no error bar: any of these differences may be chance. Ask for three "
            "seeds or more (--seeds 3) to get intervals."
        )
    return sentences


def short_table(results: Mapping[str, Any]) -> str:
    """The rows as a Markdown table that fits a README.

    Args:
        results: the content of `results.json`.
    """
    lines = [
        "| model | parameters | FFN MFLOPs per token, executed | held-out nats: converted "
        "| trained | bits per byte | against the control (95 % interval) |",
        "|---|---:|---:|---:|---:|---:|---:|",
    ]
    for record in results["summary"]:
        title = f"**{record['title']}**" if record["arm"] == CONTROL else record["title"]
        difference, cell = record["difference"], MISSING
        if difference is not None:
            cell = _signed(difference["mean"])
            if difference["low"] is not None:
                cell += f" ({_signed(difference['low'])} to {_signed(difference['high'])})"
        cells = [
            title,
            _thousands(record["parameters"]),
            _millions(record["flops_executed"]),
            _fixed(record["nats_before"]),
            _fixed(_nats(record)),
            _fixed(record["bits_per_byte"]["mean"]),
            cell,
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def _difference_sentence(record: Mapping[str, Any], seeds: int) -> str:
    difference = record["difference"]
    size = f"{abs(difference['mean']):.3f} nats"
    where = f"{size} below" if difference["mean"] < 0 else f"{size} above"
    if abs(difference["mean"]) < 0.0005:
        where = "level with"
    text = (
        f"{record['title']} ends {where} the control, at "
        f"{record['flops_executed'] / 1e6:.2f} FFN MFLOPs per token"
    )
    if seeds < 2:
        return text + "."
    verdict = (
        "which includes zero: no difference shown"
        if difference["low"] <= 0 <= difference["high"]
        else "which excludes zero"
    )
    return (
        f"{text}; paired over {difference['n']} seeds the 95 % interval is "
        f"{_signed(difference['low'], 3)} to {_signed(difference['high'], 3)}, {verdict}."
    )


def data_uri(path: Path) -> str:
    """A PNG file as a `data:` address, for a page without external resources."""
    return "data:image/png;base64," + base64.b64encode(path.read_bytes()).decode()


def _nats(record: Mapping[str, Any]) -> float:
    return record["nats_per_token"]["mean"]


def _fixed(value: float | None, digits: int = 3) -> str:
    return MISSING if value is None else f"{value:.{digits}f}"


def _signed(value: float | None, digits: int = 3) -> str:
    if value is None:
        return MISSING
    text = f"{value:+.{digits}f}"
    return text.replace("-", MINUS) if float(text) else text[1:]


def _millions(value: float | None, digits: int = 2) -> str:
    return MISSING if value is None else f"{value / 1e6:.{digits}f}"


def _thousands(value: float | None) -> str:
    return MISSING if value is None else f"{value:,.0f}"


def _minutes(seconds: float) -> str:
    whole = round(seconds)
    return f"{whole // 60} min {whole % 60:02d} s" if whole >= 60 else f"{whole} s"
