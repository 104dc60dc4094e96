"""Code of the user's own, run because they named it: controllers register themselves so."""

import hashlib
import importlib
import importlib.util
import sys
from collections.abc import Iterable
from pathlib import Path
from types import ModuleType

from versatileffn.errors import ConfigError

_IMPORTED: dict[str, str] = {}


def import_modules(names: Iterable[str]) -> dict[str, str]:
    """Import modules, each once.

    Args:
        names: modules as Python finds them, or paths that end in .py.

    Returns:
        SHA-256 of each one's source, by name.

    Raises:
        ConfigError: one isn't there, or fails.
    """
    found = {}
    for name in names:
        try:
            module = _from_file(Path(name).expanduser()) if name.endswith(".py") else None
            file = (module or importlib.import_module(name)).__file__
        except ConfigError:
            raise
        except Exception as error:  # it is code of anyone
            reason = str(error).partition("\n")[0]
            raise ConfigError(
                f"{name} can't be imported ({type(error).__name__}: {reason}): name a module that "
                "Python finds, or a .py file"
            ) from error
        found[name] = hashlib.sha256(Path(file).read_bytes()).hexdigest() if file else "no source"
    _IMPORTED.update(found)
    return found


def imported() -> dict[str, str]:
    """SHA-256 of the sources of all that was imported so, by name."""
    return dict(_IMPORTED)


def _from_file(path: Path) -> ModuleType:
    """The module that a file is, under the file's own name, so that it can be pickled."""
    known = sys.modules.get(path.stem)
    if known is not None:
        if getattr(known, "__file__", None) != str(path.resolve()):
            raise ConfigError(f"{path}: a module called {path.stem!r} is there already: rename it")
        return known
    spec = importlib.util.spec_from_file_location(path.stem, path.resolve())
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[path.stem] = module
    try:
        spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[path.stem]
        raise
    return module
