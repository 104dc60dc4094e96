"""Numbers as a person reads them; rounding never hides on which side of zero one is."""

from collections.abc import Mapping
from typing import Any

MINUS = "\N{MINUS SIGN}"
MISSING = "–"
MOST_DIGITS = 6


def fixed(value: float | None, digits: int = 3) -> str:
    """So many digits after the point."""
    return MISSING if value is None else f"{value:.{digits}f}"


def signed(value: float | None, digits: int = 3) -> str:
    """The same with its sign, which zero hasn't."""
    if value is None:
        return MISSING
    text = f"{value:+.{digits}f}"
    return text.replace("-", MINUS) if float(text) else text[1:]


def digits_for(*values: float | None, least: int = 3) -> int:
    """Digits after the point with which none of these numbers rounds to zero, unless it is that.

    So an interval that excludes zero is never printed as one that touches it.
    """
    for digits in range(least, MOST_DIGITS):
        if all(value is None or value == 0 or float(f"{value:.{digits}f}") for value in values):
            return digits
    return MOST_DIGITS


def millions(value: float | None, digits: int = 2) -> str:
    """Millions, without the word."""
    return MISSING if value is None else f"{value / 1e6:.{digits}f}"


def thousands(value: float | None) -> str:
    """A whole number, its digits in groups of three."""
    return MISSING if value is None else f"{value:,.0f}"


def clock(seconds: float) -> str:
    """Seconds as a person says them: `8 s`, `2 min 05 s`, `1 h 02 min`."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02d} min"


def probability(p: float | None) -> str:
    """A p-value to two significant digits."""
    if p is None:
        return MISSING
    return "< 0.001" if p < 0.001 else f"{p:.2g}"


FILTERS = {"fixed": fixed, "millions": millions, "thousands": thousands, "clock": clock}


def contrast(difference: Mapping[str, Any]) -> dict[str, str]:
    """The cells of a difference: the mean with its interval, the error over documents, p."""
    low, high = difference.get("low"), difference.get("high")
    digits = digits_for(difference.get("mean"), low, high)
    error = difference.get("document_error")
    text = signed(difference.get("mean"), digits)
    if low is not None:
        text += f" ({signed(low, digits)} to {signed(high, digits)})"
    return {
        "difference": text,
        "document_error": fixed(error, digits_for(error)),
        "p": probability(difference.get("p_holm")),
    }


def shown(record: Mapping[str, Any]) -> dict[str, str]:
    """The cells of one record of the summary, as every table prints them."""
    title, after = record["title"], fixed(record["nats_per_token"])
    if record["diverged"]:
        seeds = ", ".join(map(str, record["diverged"]))
        title += f" (diverged: seed {seeds})"
        after = after if record["nats_per_token"] is not None else "diverged"
    return {
        "arm": record["arm"],
        "title": title,
        "parameters": thousands(record["parameters"]),
        "executed": millions(record["flops_executed"]),
        "paper": millions(record["flops_paper"]),
        "before": fixed(record["nats_before"]),
        "after": after,
        "bits": fixed(record["bits_per_byte"]),
        **contrast(record["difference"] or {}),
        "speed": thousands(record["tokens_per_second"]),
    }
