"""`results.json` as a page: Markdown for reading beside code, one self-contained HTML file."""

import base64
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined, select_autoescape

from versatileffn.reproduce.findings import findings
from versatileffn.reproduce.numbers import FILTERS, contrast, fixed, shown, signed
from versatileffn.reproduce.paper import CITED, CITED_354M
from versatileffn.reproduce.results import BASE, CONTROL
from versatileffn.reproduce.rulers import QUESTIONS
from versatileffn.reproduce.tables import TABLES
from versatileffn.workspace.durable import write_bytes

CAPTIONS = {
    "loss-curves": "Held-out loss along continued training. Every model starts from the same base "
    "checkpoint and sees the same windows in the same order, with a new optimizer and the learning "
    "rate back at its peak. The broad band is the control. A curve that begins above the cut axis "
    "was shocked by the conversion.",
    "difference-curves": "The same curves minus the control's: below the band is better than "
    "training the dense model on. Thin lines are single seeds; what the conversion did at first "
    "may lie above the cut axis.",
    "scratch-loss-curves": "Held-out loss along training from scratch, on the same windows in the "
    "same order. The broad band is the dense base, the control here.",
    "scratch-difference-curves": "The same curves minus the dense base's, where "
    "both were measured.",
    "quality-against-flops": "Held-out loss after training against the FFN work that one token "
    "really costs at inference. Lower left is better.",
    "loops-per-layer": "How often tokens pass through the shared FFN, layer by layer, on held-out "
    "text. Layers count from 1.",
    "expert-load": "How evenly the routers spread tokens over the experts on held-out text.",
}

WORDS = {
    "lower": "lower",
    "higher": "higher",
    "none": "no difference shown",
    "undecided": "undecided: too few seeds",
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
        "families": families(results),
        "missing": results.get("missing", []),
        "heading": TABLES[results["protocol"].get("table", "demo")].title,
        "beside": beside_the_paper(results),
        "tasks": task_scores(results),
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
    fresh = any(arm.get("start", "base") is None for arm in protocol["arms"])
    others = "every model that isn't trained from scratch" if fresh else "every other model"
    return f"The base saw {base:,} tokens once; {others} was continued on {rest}."


def families(results: Mapping[str, Any]) -> list[dict[str, Any]]:
    """What was asked beyond the main table: each question of each phase with its rows.

    Args:
        results: the content of `results.json`; an earlier version's has none.
    """
    found: dict[str, dict[str, Any]] = {}
    for record in results.get("comparisons", []):
        phase = "" if record["phase"] == "all" else f", {record['phase']}"
        title = f"{QUESTIONS[record['question']]}{phase}"
        family = found.setdefault(title, {"title": title, "rows": []})
        cells = {"title": record["title"], "verdict": WORDS[record["verdict"]]}
        family["rows"].append({**cells, **contrast(record["difference"])})
    return list(found.values())


def beside_the_paper(results: Mapping[str, Any]) -> list[dict[str, str]]:
    """Our losses and the paper's, each with the difference to its own control.

    Args:
        results: the content of `results.json`; of other comparisons than the paper's, nothing.
    """
    table, scale = results["protocol"].get("table"), results["protocol"]["scale"]
    by_scale = CITED.get(table, {})
    if not by_scale:
        return []
    size = scale if scale in by_scale else "354m"
    printed, controls = by_scale[size], {BASE: by_scale[size].get(BASE)}
    if size == "354m" and any(record["arm"] == CONTROL for record in results["summary"]):
        controls[CONTROL] = CITED["figure-3"][size][CONTROL]
    rows = []
    for record in results["summary"]:
        cited, against = printed.get(record["arm"]), controls.get(record["control"])
        gap = cited.loss - against.loss if cited and against and cited is not against else None
        mean = record["tasks"].get("mean")
        rows.append(
            {
                "title": record["title"],
                "ours": fixed(record["nats_per_token"]),
                "our_difference": signed((record["difference"] or {}).get("mean")),
                "paper": fixed(cited.loss if cited else None),
                "paper_difference": signed(gap),
                "accuracy": fixed(mean and 100 * mean, 2),
                "paper_accuracy": fixed(cited.accuracy if cited else None, 2),
            }
        )
    return rows


def task_scores(results: Mapping[str, Any]) -> dict[str, Any] | None:
    """Accuracy in percent: `names` of the tasks, and `rows` of a title and its cells."""
    scored = [record for record in results["summary"] if record.get("tasks")]
    if not scored:
        return None
    names = list(scored[0]["tasks"])
    rows = [(r["title"], [fixed(100 * r["tasks"][name], 2) for name in names]) for r in scored]
    return {"names": names, "rows": rows}


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
