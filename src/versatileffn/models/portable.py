"""What tools find: the package's own classes where it is installed, else those made above."""

from typing import Any

from versatileffn.models.config import register_configs
from versatileffn.models.family import find_class

installed: Any
try:
    from versatileffn.models import family as installed
except ImportError:
    installed = None
    register_configs()


def __getattr__(name: str) -> Any:
    """A class by its name, as `auto_map` in a config.json gives it."""
    return find_class(name) if installed is None else getattr(installed, name)
