"""The modules that a module needs, in an order in which each follows what it imports."""

import ast
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from versatileffn.errors import ConfigError

PACKAGE = __name__.partition(".")[0]
ROOT = Path(__file__).parents[1]
"""Of this package's sources."""


@dataclass(frozen=True)
class Module:
    """One module's source.

    Args:
        name: as Python imports it.
        text: of its file.
    """

    name: str
    text: str

    @classmethod
    def read(cls, name: str, root: Path = ROOT) -> "Module":
        """A module of this package, by its name.

        Raises:
            ConfigError: it is a package, or isn't there.
        """
        path = root.joinpath(*name.split(".")[1:]).with_suffix(".py")
        if not path.is_file():
            raise ConfigError(f"{name} is no module with a file of its own: import names from one")
        return cls(name, path.read_text(encoding="utf-8"))

    @cached_property
    def tree(self) -> ast.Module:
        """Its syntax."""
        return ast.parse(self.text)

    @property
    def summary(self) -> str:
        """Its docstring."""
        return ast.get_docstring(self.tree) or ""

    @cached_property
    def guarded(self) -> set[ast.AST]:
        """What stands in its `try` statements, and may fail where this package isn't installed."""
        tries = (node for node in self.tree.body if isinstance(node, ast.Try))
        return {part for node in tries for part in ast.walk(node)}

    def own_imports(self, at_top: bool = False) -> Iterator[ast.ImportFrom]:
        """Its imports of this package's modules, guarded ones left out.

        Args:
            at_top: those outside of functions only.

        Raises:
            ConfigError: one names a module, or gives another name: one file has one namespace.
        """
        for node in self.tree.body if at_top else ast.walk(self.tree):
            if node in self.guarded:
                continue
            if isinstance(node, ast.ImportFrom) and is_own(node.module):
                renamed = [alias.name for alias in node.names if alias.asname]
                if renamed:
                    raise ConfigError(f"{self.name} imports {renamed[0]} under another name")
                yield node
            elif isinstance(node, ast.Import) and any(is_own(a.name) for a in node.names):
                raise ConfigError(f"{self.name} imports a module of ours: import names from it")


def is_own(module: str | None) -> bool:
    """Whether a module is of this package."""
    return module is not None and module.split(".")[0] == PACKAGE


def closure(name: str, instead: Mapping[str, str], root: Path = ROOT) -> list[Module]:
    """A module and all that it needs, each after what it imports at its top.

    Args:
        name: of the module.
        instead: modules that others stand in for.
        root: of the package's sources.

    Raises:
        ConfigError: a module can't be read, or can't stand in one file with others.
    """
    order: dict[str, Module] = {}
    begun: set[str] = set()

    def visit(wanted: str) -> None:
        wanted = instead.get(wanted, wanted)
        if wanted in begun:
            return
        begun.add(wanted)
        module = Module.read(wanted, root)
        for node in module.own_imports(at_top=True):
            visit(str(node.module))
        order[wanted] = module
        for node in module.own_imports():  # functions import when they run, in no order
            visit(str(node.module))

    visit(name)
    return list(order.values())
