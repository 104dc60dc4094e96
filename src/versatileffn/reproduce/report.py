"""`results.json` as a page: Markdown for reading beside code, one self-contained HTML file."""

import base64
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined, select_autoescape

from versatileffn.reproduce.findings import findings
from versatileffn.reproduce.numbers import FILTERS, shown
from versatileffn.reproduce.paper import CITED_354M
from versatileffn.reproduce.results import BASE, CONTROL
from versatileffn.workspace.durable import write_bytes

CAPTIONS = {
    "loss-curves": "Held-out loss along continued training. Every model starts from the same base "
    "checkpoint and sees the same windows in the same order, with a new optimizer and the learning "
    "rate back at its peak. The broad band is the control. A curve that begins above the cut axis "
    "was shocked by the conversion.",
    "difference-curves": "The same curves minus the control's: below the band is better than "
    "training the dense model on. Thin lines are single seeds; what the conversion did at first "
    "may lie above the cut axis.",
    "quality-against-flops": "Held-out loss after training against the FFN work that one token "
    "really costs at inference. Lower left is better.",
    "loops-per-layer": "How often tokens pass through the shared FFN, layer by layer, on held-out "
    "text. Layers count from 1.",
    "expert-load": "How evenly the routers spread tokens over the experts on held-out text.",
}


def write_report(results: Mapping[str, Any], figures: Mapping[str, Path], folder: Path) -> Path:
    """Write `report.md` and `report.html`.

    Args:
        results: the content of `results.json`.
        figures: SVG files by name, all below `folder`; the HTML carries them inside itself.
        folder: where the two files go.

    Returns:
        Path of the HTML report.
    """
    shared = {
        "results": results,
        "protocol": results["protocol"],
        "table": [shown(record) for record in results["summary"]],
        "several": len(results["seeds"]) > 1,
        "measured": next((row["after"] for row in results["rows"] if row["after"]), None),
        "controllers": max(r["flops_controller"] or 0 for r in results["summary"]),
        "passes": _passes(results["protocol"]),
        "findings": findings(results),
        "cited": CITED_354M,
        "captions": CAPTIONS,
        "base": BASE,
        "control": CONTROL,
    }
    return write_pages("report", shared, figures, folder)


def write_pages(
    template: str, shared: Mapping[str, Any], figures: Mapping[str, Path], folder: Path
) -> Path:
    """Write `report.md` and `report.html` from the two templates of a name.

    Args:
        template: the name; `.md.j2` and `.html.j2` follow it.
        shared: what both show.
        figures: SVG files by name, all below `folder`; the HTML carries them inside itself.
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
    environment.filters.update(FILTERS)
    links = {name: Path(os.path.relpath(path, folder)).as_posix() for name, path in figures.items()}
    inlined = {name: data_uri(path) for name, path in figures.items()}
    for ending, addresses in (("md", links), ("html", inlined)):
        page = environment.get_template(f"{template}.{ending}.j2")
        write_bytes(folder / f"report.{ending}", page.render(**shared, figures=addresses).encode())
    return folder / "report.html"


def _passes(protocol: Mapping[str, Any]) -> str:
    """How much each model read, and how much of the paper's protocol that is."""
    base, more = protocol["base_tokens"], protocol["continued_tokens"]
    if base == more:
        rest = "all of them: one more pass, as in the paper"
    else:
        share = f"{100 * more / base:.0f} %"
        rest = f"the first {more:,} of them: {share} of the whole pass that the paper makes"
    return f"The base saw {base:,} tokens once; every other model was continued on {rest}."


def short_table(results: Mapping[str, Any]) -> str:
    """The rows as a Markdown table that fits a README.

    Args:
        results: the content of `results.json`.
    """
    columns = {
        "title": "model",
        "parameters": "parameters",
        "executed": "FFN MFLOPs per token, executed",
        "before": "held-out nats: converted",
        "after": "trained",
        "bits": "bits per byte",
        "difference": "against the control (95 % over seeds)",
        "document_error": "± documents",
        "p": "p (Holm)",
    }
    lines = [f"| {' | '.join(columns.values())} |", "|---|" + "---:|" * (len(columns) - 1)]
    for record in results["summary"]:
        cells = shown(record)
        if record["arm"] == CONTROL:
            cells["title"] = f"**{cells['title']}**"
        lines.append(f"| {' | '.join(cells[name] for name in columns)} |")
    return "\n".join(lines)


def data_uri(path: Path) -> str:
    """An SVG file as a `data:` address, for a page without external resources."""
    return "data:image/svg+xml;base64," + base64.b64encode(path.read_bytes()).decode()
