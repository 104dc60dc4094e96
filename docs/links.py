"""A hook of the site: links that leave docs/ go to the repository, or, without one, nowhere."""

import re
from typing import Any

OUTSIDE = re.compile(r"(?<!!)\[([^\]]*)\]\(\.\./([^)]*)\)")


def on_page_markdown(markdown: str, config: Any, **_: Any) -> str:
    """Rewrite a page before it is rendered."""
    address = str(config.repo_url or "").rstrip("/")
    link = rf"[\1]({address}/blob/main/\2)" if address else r"\1"
    return OUTSIDE.sub(link, markdown)
