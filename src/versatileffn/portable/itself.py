"""Stands in for `portable/source.py` in the portable file, which gives itself when it is asked."""

from pathlib import Path

MODELLING = "modeling_versatileffn"
"""As there."""


def modelling_source() -> str:
    """The text of the file that this stands in."""
    return Path(__file__).read_text(encoding="utf-8")
