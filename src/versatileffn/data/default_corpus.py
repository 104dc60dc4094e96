"""The corpus that every machine has: the sources and manual of the Python that runs."""

import platform
import sysconfig
from pathlib import Path

from versatileffn.errors import DataError

TOPICS_FILE = "pydoc_data/topics.py"
MIN_BYTES = 256
_SKIPPED_FOLDERS = frozenset(
    {"test", "tests", "idle_test", "site-packages", "dist-packages", "__pycache__"}
)


def default_corpus_name() -> str:
    """How meta.json names the default corpus."""
    return f"Python {platform.python_version()} standard library"


def standard_library() -> Path:
    """The folder of the running Python's own sources."""
    return Path(sysconfig.get_path("stdlib"))


def source_files(root: Path) -> list[str]:
    """The sources that serve as documents, one file each.

    Left out: tests, installed packages, files of a few lines, files that are not UTF-8, and
    `_sysconfigdata*`, which describes the machine rather than Python.

    Args:
        root: the standard library's folder.

    Returns:
        Sorted paths relative to `root`, with `/`, without `TOPICS_FILE`.

    Raises:
        DataError: there are none, as in a Python that was installed without its sources.
    """
    files = [
        name
        for path in root.rglob("*.py")
        if not _SKIPPED_FOLDERS.intersection(path.relative_to(root).parts[:-1])
        and not path.name.startswith("_sysconfigdata")
        and (name := path.relative_to(root).as_posix()) != TOPICS_FILE
        and _is_document(path)
    ]
    if not files:
        raise DataError(f"{root}: no Python sources here; name a SOURCE instead of the default")
    return sorted(files)


def read_topics() -> dict[str, str]:
    """Python's language reference as text, one entry per topic; empty where it isn't installed."""
    try:
        from pydoc_data.topics import topics
    except ImportError:
        return {}
    return dict(sorted(topics.items()))


def _is_document(path: Path) -> bool:
    content = path.read_bytes()
    if len(content) < MIN_BYTES or b"\0" in content:
        return False
    try:
        content.decode("utf-8")
    except UnicodeDecodeError:
        return False
    return True
