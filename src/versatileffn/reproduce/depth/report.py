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
TITLES = {
    "options": "What training options do",
    "facts": "Does reuse store facts?",
    "unseen": "Does reuse go deeper than it was trained to?",
    "text": "Does a controller learn how deep to go, in the company of text?",
}
"""By scale; the others ask the question that this package begins with."""
TITLE = "Does a controller learn how deep to go?"
RULE_110 = (
    "the answer is the state after k steps (k = 0 … {most}) of cellular automaton rule 110 on a "
    "ring, and counts as right if every bit is."
)
QUESTIONS = {
    "facts": "the answer is a state that was drawn for this question once and for all, and counts "
    "as right if every bit is: nothing leads to it but memory. {known} states are asked about, all "
    "of them in training, too.",
    "unseen": RULE_110 + " The largest k is never trained on.",
    "text": RULE_110 + " {text} bytes of text follow, and are predicted, too.",
}
HELD_OUT = " A tenth of the states is never trained on and asked about here; another tenth {}."
OPTION_STATEMENTS = {
    "helped": "Right more often",
    "hurt": "Right less often",
    "graceful": "More gracefully under a cap",
    "abrupt": "More abruptly under a cap",
}


def render(results: Mapping[str, Any], out: Path) -> Path:
    """Draw the figures and write both reports from the content of a `results.json`.

    Returns:
        Path of the HTML report.
    """
    summary, scale = results["summary"], results["protocol"]["scale"]
    judged = results["protocol"].get("judged", PAPER_BOTH)  # the first experiment doesn't say
    titles = {arm["arm"]: arm["title"] for arm in summary["arms"]}
    larger = ", ".join(f"`{name}`" for name in (DENSE_LARGE, DENSE_LARGE_K) if name in titles)
    ks = range(results["protocol"]["task"]["most"] + 1)
    shared = {
        "results": results,
        "protocol": results["protocol"],
        "task": results["protocol"]["task"],
        "ks": list(ks),
        "title": TITLES.get(scale, TITLE),
        "answer": QUESTIONS.get(scale, RULE_110).format(**results["protocol"]["task"]),
        "held_out": ""
        if scale == "facts"
        else HELD_OUT.format(
            "chose the learning rates" if results["protocol"]["rule"] else "draws the curves"
        ),
        "table": [_shown(arm) for arm in summary["arms"]],
        "comparisons": [_compared(each, titles) for each in summary["comparisons"]],
        "capped": [_compared(each, titles) for each in summary.get("capped", ())],
        "verdicts": _verdicts(summary["verdict"], judged, larger),
        "busiest": [
            (arm["title"], fixed(arm["busiest_expert"], 2))
            for arm in summary["arms"]
            if arm.get("busiest_expert") is not None
        ],
        "caps": [_caps(arm) for arm in summary["arms"] if arm["caps"]],
        "texts": [_text(arm) for arm in summary["arms"] if arm.get("text_loss")],
        "gains": [_gains(arm) for arm in summary["arms"] if arm["gains"]],
        "several": len(results["seeds"]) > 1,
        "captions": CAPTIONS,
        "options": results["protocol"].get("reference") is not None,
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


def _verdicts(verdict: Mapping[str, Any], judged: str, larger: str) -> list[str]:
    """The criterion's statements with their answers."""
    if "helped" in verdict:
        named = {key: ", ".join(f"`{arm}`" for arm in verdict[key]) for key in OPTION_STATEMENTS}
        return [f"{text}: {named[key] or 'none'}." for key, text in OPTION_STATEMENTS.items()]
    return [_verdict(text.format(judged, larger), verdict[key]) for key, text in STATEMENTS.items()]


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
