"""The depth experiment's `results.json` as a page."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from versatileffn.reproduce.numbers import fixed
from versatileffn.workspace.durable import write_bytes


def render(results: Mapping[str, Any], out: Path) -> Path:
    """Write `report.md`: one line for each arm.

    Args:
        results: the content of `results.json`.
        out: where it goes.
    """
    lines = [results["protocol"]["criterion"], ""]
    for arm in results["summary"]["arms"]:
        mean = (arm["mean_exact"] or {}).get("mean")
        exact = " ".join(fixed(value, 2) for value in arm["exact"] or ())
        loops = " ".join(fixed(value, 2) for value in arm["loops"] or ())
        lines.append(f"- {arm['title']}: {fixed(mean)} ({exact}); loops {loops or 'none'}")
    write_bytes(out / "report.md", ("\n".join(lines) + "\n").encode())
    return out / "report.md"
