"""Names of several modules in one namespace: none may have two meanings."""

import ast
import builtins
import sys
from collections.abc import Iterator, Sequence

from versatileffn.errors import ConfigError
from versatileffn.portable.modules import Module, is_own

WIDTH = 100
"""Columns of a line."""


def defined(module: Module) -> Iterator[str]:
    """What a module defines at its top, names that speak of the module itself left out."""
    for node in ast.walk(ast.Module([_without_bodies(n) for n in module.tree.body], [])):
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            found = node.name
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            found = node.id
        elif isinstance(node, ast.alias) and node in module.guarded:
            found = node.asname or node.name
        else:
            continue
        if not is_dunder(found):
            yield found


def is_dunder(name: str) -> bool:
    """Whether a name is one of Python's own, like `__getattr__`."""
    return name.startswith("__") and name.endswith("__")


def _without_bodies(node: ast.stmt) -> ast.stmt:
    """A definition by its name alone; any other statement as it is."""
    if isinstance(node, ast.FunctionDef):
        return ast.FunctionDef(node.name, node.args, [], [])
    return ast.ClassDef(node.name, [], [], [], []) if isinstance(node, ast.ClassDef) else node


def external(module: Module) -> Iterator[tuple[str, str | None, str]]:
    """What a module imports at its top from elsewhere: module, name (None for itself), and how it
    is called here."""
    for node in module.tree.body:
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield alias.name, None, alias.asname or alias.name
        elif isinstance(node, ast.ImportFrom) and not is_own(node.module):
            for alias in node.names:
                yield str(node.module), alias.name, alias.asname or alias.name


def check_names(modules: Sequence[Module]) -> None:
    """Refuse modules whose names would get in each other's way.

    Raises:
        ConfigError: a name has two meanings, or hides one of Python's own, or is imported from a
            module that doesn't have it.
    """
    meanings: dict[str, str] = {}

    def mean(name: str, meaning: str) -> None:
        if hasattr(builtins, name):
            raise ConfigError(f"{name} of {meaning} hides Python's own: rename it")
        if meanings.setdefault(name, meaning) != meaning:
            raise ConfigError(f"{name} is both {meanings[name]}'s and {meaning}'s: rename one")

    for module in modules:
        for source, name, called in external(module):
            mean(called, f"{source} ({name})" if name else source)
        for called in defined(module):
            mean(called, module.name)
    for module in modules:
        for node in module.own_imports():
            for alias in node.names:
                if alias.name not in meanings:
                    raise ConfigError(
                        f"{module.name} imports {alias.name} of {node.module}, which no module of "
                        "the portable file defines: define it in what stands in for that module"
                    )


def merged_imports(modules: Sequence[Module]) -> str:
    """One block of imports for all modules, those of Python's own library first."""
    wanted = {entry for module in modules for entry in external(module)}
    sections = []
    for standard in (True, False):
        lines = [
            f"import {source}" + (f" as {called}" if called != source else "")
            for source, name, called in sorted(wanted, key=str)
            if name is None and _is_standard(source) == standard
        ]
        for source in sorted({s for s, name, _ in wanted if name and _is_standard(s) == standard}):
            named = {name: called for s, name, called in wanted if s == source and name}
            names = sorted(name for name, called in named.items() if name == called)
            lines += [_from(source, names)] if names else []
            lines += [
                f"from {source} import {n} as {c}" for n, c in sorted(named.items()) if n != c
            ]
        sections.append("\n".join(lines))
    return "\n\n".join(section for section in sections if section)


def _from(source: str, names: Sequence[str]) -> str:
    line = f"from {source} import {', '.join(names)}"
    if len(line) <= WIDTH:
        return line
    return f"from {source} import (\n" + "".join(f"    {name},\n" for name in names) + ")"


def _is_standard(module: str) -> bool:
    return module.split(".")[0] in sys.stdlib_module_names
