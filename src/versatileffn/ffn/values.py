"""Whether a setting has the type and range that its name promises."""

import sys
from collections.abc import Sequence
from difflib import get_close_matches
from typing import get_args

from versatileffn.errors import ConfigError

Indices = tuple[int, ...] | None
"""Of layers, from 0; None means all."""
LARGEST = 2**20
"""Of any count; more is a slip of the keyboard, and would end in an allocation that fails."""


def check_value(name: str, value: object, hint: object) -> None:
    """Check one field's, or argument's, type and range; booleans are no numbers.

    Args:
        name: as the user wrote it.
        value: what the user gave.
        hint: bool, str, int (a count), float, a Literal of strings, `int | None`, or `Indices`.

    Raises:
        ConfigError: with the remedy.
    """
    choices = get_args(hint)
    if choices and all(isinstance(choice, str) for choice in choices):
        if value not in choices:
            raise ConfigError(f"{name}={value!r} is unknown: choose one of {list(choices)}")
    elif hint is bool:
        if not isinstance(value, bool):
            raise ConfigError(f"{name}={value!r} must be True or False")
    elif hint is str:
        if not isinstance(value, str) or not value:
            raise ConfigError(f"{name}={value!r} must be a name")
    elif hint is float:
        if (
            isinstance(value, bool)
            or not isinstance(value, int | float)
            or not abs(value) <= sys.float_info.max
        ):
            raise ConfigError(f"{name}={value!r} must be a finite number")
    elif value is None and hint is not int:
        return
    elif hint == Indices:
        if not _are_indices(value):
            raise ConfigError(
                f"{name}={value!r} must be a list of different whole numbers from 0, at least one"
            )
    elif isinstance(value, bool) or not isinstance(value, int) or not 1 <= value <= LARGEST:
        raise ConfigError(f"{name}={value!r} must be a whole number from 1 to {LARGEST:,}")


def _are_indices(value: object) -> bool:
    """Whether these are positions in a sequence, each once, and any at all."""
    return (
        isinstance(value, Sequence)
        and len(value) > 0
        and all(type(index) is int and 0 <= index < LARGEST for index in value)
        and len(set(value)) == len(value)
    )


def suggestion(name: str, valid: Sequence[str]) -> str:
    """The words that help someone who wrote `name` where only `valid` names are known."""
    nearest = get_close_matches(name, valid, n=1, cutoff=0.5)
    if nearest:
        return f"did you mean {nearest[0]!r}?"
    return f"known here: {', '.join(valid) or 'none'}"
