"""What docs/tools.md shows, so that what is walked is what a reader copies."""

import re
from pathlib import Path

PAGE = Path(__file__).parents[2] / "docs" / "tools.md"


def snippet(word: str) -> str:
    """The one Python snippet of the page that has this word."""
    (found,) = (s for s in re.findall(r"```python\n(.*?)```", PAGE.read_text("utf-8"), re.S)
                if word in s)  # fmt: skip
    return found
