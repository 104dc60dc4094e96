"""What is said when a command fails: one line, with what was wrong, where, and what to do."""

import os
import sys
import traceback
from pathlib import Path

from versatileffn.errors import VersatileFFNError
from versatileffn.workspace.durable import FAILING, FULL, system_error

DEBUG = "VERSATILEFFN_DEBUG"
"""Environment variable; set, a failure's traceback is shown. Worker processes see it, too."""
PACKAGE = Path(__file__).parents[1]


def explain(error: Exception) -> str | None:
    """One line on a failure; None for a defect of ours, whose traceback says more."""
    if isinstance(error, VersatileFFNError):
        return f"error: {error}"
    if _is_out_of_memory(error):
        return (
            f"error: out of memory ({_short(error)}): take a smaller model or batch, or a machine "
            "with more"
        )
    if isinstance(error, RecursionError):
        return f"error: something that was read is nested too deeply: mend it{_pointer(error)}"
    if isinstance(error, UnicodeEncodeError):
        return f"error: {error.object[:200]!r} isn't UTF-8: rename it{_pointer(error)}"
    if isinstance(error, ValueError) and "integer string conversion" in str(error):
        return f"error: a number with thousands of digits was read: mend it{_pointer(error)}"
    if (number := system_error(error)) in FAILING:
        name = getattr(error, "filename", None)
        where = f"{os.fsdecode(name)}: " if isinstance(name, str | bytes) else ""
        return (
            f"error: {where}{'the disk is full' if number in FULL else os.strerror(number)}: "
            f"{'free some space' if number in FULL else 'see to the disk'} and run the same "
            f"command again{'' if where else _pointer(error)}"
        )
    if isinstance(error, OSError):
        reason = error.strerror or _short(error)
        if _is_users(error.filename):
            return f"error: {os.fsdecode(error.filename)}: {reason}"
        where = f"{error.filename}: " if error.filename else ""
        return f"internal error: {type(error).__name__}: {where}{reason}{_pointer(error)}"
    return None


def debugging() -> bool:
    """Whether tracebacks are wanted."""
    return bool(os.environ.get(DEBUG))


def print_traceback(error: BaseException) -> None:
    """The whole story, with the errors that a line of ours stands for."""
    link: BaseException | None = error
    while link is not None:
        link.__suppress_context__ = False
        link = link.__cause__ or link.__context__
    traceback.print_exception(error)


def _is_out_of_memory(error: Exception) -> bool:
    if not isinstance(error, MemoryError | RuntimeError | ValueError | OSError):
        return False
    from versatileffn.memory import is_out_of_memory  # imports torch

    return is_out_of_memory(error)


def _is_users(filename: object) -> bool:
    """Whether a file is one that people name, and none of Python's, a package's or the system's."""
    if not isinstance(filename, str | bytes):
        return False
    path = Path(os.path.abspath(os.fsdecode(filename)))
    foreign = (sys.prefix, sys.base_prefix, PACKAGE, "/proc", "/sys", "/dev")
    return sys.base_prefix == "/" or not any(path.is_relative_to(folder) for folder in foreign)


def _short(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return lines[0][:200].rstrip(".:") if lines else type(error).__name__


def _pointer(error: Exception) -> str:
    """Where it happened in our code, and how to see more."""
    frames = traceback.extract_tb(error.__traceback__)
    ours = [f for f in frames if Path(f.filename).is_relative_to(PACKAGE)] or frames
    where = f" (at {Path(ours[-1].filename).name}:{ours[-1].lineno})" if ours else ""
    return f"{where}; `versatileffn --debug …` shows the traceback"
