"""Where a number comes from: versions of packages, digest of our sources."""

import hashlib
import platform
from collections.abc import Iterable
from importlib import metadata
from pathlib import Path

ROOT = Path(__file__).parent
"""Of this package's sources."""


def versions(*libraries: str) -> dict[str, str]:
    """Versions of this package, of Python, and of libraries by their distributions' names.

    This package runs from a `source tree`, too, where nothing is installed.
    """
    found = {"versatileffn": "source tree", "python": platform.python_version()}
    for name in ("versatileffn", *libraries):
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            found.setdefault(name, "not installed")
    return found


def source_digest(folders: Iterable[str] = (".",), without: Iterable[str] = ()) -> str:
    """SHA-256 of source files of this package: other code may give other results.

    Args:
        folders: below the package; by default all of it.
        without: names of files that don't count.
    """
    left_out = set(without)
    paths = {path for folder in folders for path in (ROOT / folder).rglob("*.py")}
    digest = hashlib.sha256()
    for path in sorted(paths):
        if path.name not in left_out:
            digest.update(f"{path.relative_to(ROOT).as_posix()}\0".encode())
            digest.update(path.read_bytes())
    return digest.hexdigest()
