"""The command line as a user types it, in this process."""

import io
import sys
from typing import Any

import pytest

from versatileffn.cli.main import main


def run(patch: pytest.MonkeyPatch, *arguments: Any) -> Any:
    """The command line with a `y` waiting for every question; its exit code."""
    patch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"y\n" * 20)))
    patch.setattr(sys, "argv", ["versatileffn", *map(str, arguments)])
    try:
        main()
    except SystemExit as stop:
        return stop.code
    return 0
