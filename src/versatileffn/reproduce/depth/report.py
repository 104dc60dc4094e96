"""The depth experiment's `results.json` as a page."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from versatileffn.reproduce.depth.figures import draw_all
from versatileffn.reproduce.depth.protocol import (
    DENSE_LARGE,
    DENSE_LARGE_K,
    PAPER,
    PAPER_BOTH,
    TOLD,
)
from versatileffn.reproduce.numbers import digits_for, fixed, probability, signed, thousands
from versatileffn.reproduce.report import write_pages

CAPTIONS = {
    "exact-by-k": "Share of test states whose answer is right in every bit, by the steps asked "
    "for. Means over seeds.",
    "loops-by-k": "Loops of the reused FFN at the token that answers. The band is as many as the "
    "steps asked for.",
    "loops-over-time": "The same along training, on validation states. Loops that aren't open yet "
    "can't be chosen.",
    "exact-under-caps": "Exact match, a mean over k, where nobody may loop more often than a cap "
    "that is set at inference.",
}
STATEMENTS = {
    "mechanism_works": f"With the depth prescribed (`{TOLD}`) the task is solved",
    "fails_without": f"The paper's controller (`{PAPER}`) stays below that",
    "reuse_pays": "Reuse (`{}`) is better than four times the hidden neurons ({})",
    "loops_follow": "and its loops follow the need",
}


def render(results: Mapping[str, Any], out: Path) -> Path:
    """Draw the figures and write both reports from the content of a `results.json`.

    Returns:
        Path of the HTML report.
    """
    summary = results["summary"]
    judged = results["protocol"].get("judged", PAPER_BOTH)  # the first experiment doesn't say
    titles = {arm["arm"]: arm["title"] for arm in summary["arms"]}
    larger = ", ".join(f"`{name}`" for name in (DENSE_LARGE, DENSE_LARGE_K) if name in titles)
    ks = range(results["protocol"]["task"]["most"] + 1)
    shared = {
        "results": results,
        "protocol": results["protocol"],
        "task": results["protocol"]["task"],
        "ks": list(ks),
        "table": [_shown(arm) for arm in summary["arms"]],
        "comparisons": [_compared(each, titles) for each in summary["comparisons"]],
        "verdicts": [
            _verdict(text.format(judged, larger), summary["verdict"][key])
            for key, text in STATEMENTS.items()
        ],
        "caps": [_caps(arm) for arm in summary["arms"] if arm["caps"]],
        "texts": [_text(arm) for arm in summary["arms"] if arm.get("text_loss")],
        "gains": [_gains(arm) for arm in summary["arms"] if arm["gains"]],
        "several": len(results["seeds"]) > 1,
        "captions": CAPTIONS,
    }
    return write_pages("depth", shared, draw_all(results["rows"], out / "figures"), out)


def _shown(arm: Mapping[str, Any]) -> dict[str, Any]:
    """The cells of one arm."""
    title = arm["title"]
    if arm["diverged"]:
        title += f" (diverged: seed {', '.join(map(str, arm['diverged']))})"
    executed = arm["flops_executed"]
    return {
        "name": arm["arm"],
        "title": title,
        "parameters": thousands(arm["parameters"]),
        "flops": fixed(None if executed is None else executed / 1e3, 1),
        "rate": f"{arm['rate']:g}",
        "mean": _with_interval(arm["mean_exact"], fixed),
        "exact": [fixed(value, 2) for value in arm["exact"] or ()],
        "loops": " ".join(fixed(value, 1) for value in arm["loops"] or ()) or "–",
        "rank": _with_interval(arm["rank_correlation"], fixed, digits=2),
    }


def _with_interval(value: Mapping[str, Any] | None, show: Any, digits: int = 3) -> str:
    """A mean, and its interval where there is one."""
    if value is None:
        return "–"
    text = str(show(value["mean"], digits))
    if value["low"] is None or value["low"] == value["high"]:
        return text
    return f"{text} ({show(value['low'], digits)} to {show(value['high'], digits)})"


def _compared(each: Mapping[str, Any], titles: Mapping[str, str]) -> dict[str, str]:
    """The cells of one comparison."""
    digits = digits_for(each["mean"], each["low"], each["high"])
    return {
        "first": titles[each["first"]],
        "second": titles[each["second"]],
        "difference": _with_interval(each, signed, digits),
        "p": probability(each["p_holm"]),
    }


def _verdict(text: str, holds: bool | None) -> str:
    word = {True: "yes", False: "**no**", None: "not tested by this run"}[holds]
    return f"{text}: {word}."


def _caps(arm: Mapping[str, Any]) -> dict[str, Any]:
    return {"title": arm["title"], "cells": [_mean(each) for each in arm["caps"].values()]}


def _text(arm: Mapping[str, Any]) -> dict[str, Any]:
    """What an arm makes of the text beside the questions."""
    loops = arm["text_loops"]
    return {
        "title": arm["title"],
        "loss": _with_interval(arm["text_loss"], fixed),
        "loops": _with_interval(loops, fixed, digits=2),
    }


def _mean(values: Sequence[float]) -> str:
    return fixed(sum(values) / len(values), 2)


def _gains(arm: Mapping[str, Any]) -> str:
    named = ", ".join(f"{name} {value:.2f}" for name, value in arm["gains"].items())
    return f"{arm['title']}: {named}"
