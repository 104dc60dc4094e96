"""The one file that an exported model brings along, made from this package's own sources.

Modules stand one after the other as they were written; imports among them are left out, all others
gathered at the top. Two modules are others there: `execution/portable.py` carries plans out by the
masked executor alone, and `portable/itself.py` gives this very file when the model is saved again.
"""

import ast
import hashlib
from functools import cache
from pathlib import Path

from versatileffn.portable.modules import ROOT, Module, closure
from versatileffn.portable.names import WIDTH, check_names, is_dunder, merged_imports

MODELLING = "modeling_versatileffn"
"""The file's name, which a config's `auto_map` says."""
ENTRY = "versatileffn.models.portable"
"""The module with which the file ends: what a tool finds in it."""
INSTEAD = {
    "versatileffn.execution.select": "versatileffn.execution.portable",
    "versatileffn.portable.source": "versatileffn.portable.itself",
}
HEADER = '''\
"""Language models whose feed-forward network is reused in width and depth (arXiv 2512.14531).

Made by `versatileffn export` from the sources of that package, which is needed for nothing here:
every token runs all loops, with the results that the package's fast executors have. Where the
package is installed, its own classes take over, see the end of this file.

Sources: SHA-256 {digest}
SPDX-License-Identifier: Apache-2.0
"""
'''


@cache
def modelling_source() -> str:
    """The file's text; the same sources always give the same.

    Raises:
        ConfigError: a module can't stand in one file with others.
    """
    return portable_source(ENTRY, ROOT)


def portable_source(entry: str, root: Path) -> str:
    """One file's text from a module and all that it needs; see `modelling_source`.

    Args:
        entry: the module.
        root: of the package's sources.
    """
    modules = closure(entry, INSTEAD, root)
    check_names(modules)
    digest = hashlib.sha256("\0".join(f"{m.name}\0{m.text}" for m in modules).encode()).hexdigest()
    names = {module.name for module in modules}
    bodies = [_title(m) + _body(m, names, is_entry=m.name == entry) for m in modules]
    head = HEADER.format(digest=digest) + "\n" + merged_imports(modules)
    return head + "\n\n" + "\n\n\n".join(bodies) + "\n"


def _title(module: Module) -> str:
    """A module's name and docstring as comments."""
    rule = f"# {'-' * 4} {module.name} "
    lines = [rule + "-" * (WIDTH - len(rule)), *module.summary.splitlines()]
    rest = "".join(f"# {line}".rstrip() + "\n" for line in lines[1:])
    return f"{lines[0]}\n{rest}\n"


def _body(module: Module, names: set[str], is_entry: bool) -> str:
    """A module's source without its docstring and imports; its own name becomes `__name__`."""
    lines = [line.encode() for line in module.text.splitlines()]  # as ast counts columns
    for node in ast.walk(module.tree):
        if isinstance(node, ast.Constant) and node.value in names:
            row = node.lineno - 1
            lines[row] = (
                lines[row][: node.col_offset] + b"__name__" + lines[row][node.end_col_offset :]
            )
    dropped: list[ast.stmt] = [
        node
        for index, node in enumerate(module.tree.body)
        if isinstance(node, ast.Import | ast.ImportFrom)
        or (index == 0 and module.summary)
        or (not is_entry and _is_about_module(node))
    ]
    for node in (*dropped, *module.own_imports()):
        for row in range(node.lineno - 1, node.end_lineno or node.lineno):
            lines[row] = b"\0"
    return "\n".join(line.decode() for line in lines if line != b"\0").strip("\n")


def _is_about_module(node: ast.stmt) -> bool:
    """Whether a statement defines a name like `__all__`, which speaks of one module."""
    if isinstance(node, ast.FunctionDef):
        return is_dunder(node.name)
    if isinstance(node, ast.Assign):
        return all(isinstance(target, ast.Name) and is_dunder(target.id) for target in node.targets)
    return False
