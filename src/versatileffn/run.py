"""Run another program of this Python with our models known to it.

    python -m versatileffn.run TOOL [ARGUMENTS]

A last resort for tools that load a model by name and have no flag for code that lies with it: the
tool's own command, in a process that imported `versatileffn` first. Processes that it starts anew
don't know ours; an exported folder needs none of this.
"""

import sys
from importlib.metadata import entry_points
from typing import Any

import versatileffn  # noqa: F401  (registers the Auto classes)
from versatileffn.errors import ConfigError


def run(tool: str, arguments: list[str]) -> Any:
    """Call a console program that is installed beside us.

    Args:
        tool: its name in a shell.
        arguments: what follows the name.

    Returns:
        what it returns, which is its exit code where it is a number.

    Raises:
        ConfigError: no installed package has such a program.
    """
    found = entry_points(group="console_scripts", name=tool)
    if not found:
        raise ConfigError(
            f"no package in {sys.prefix} has a program called {tool!r}: install it beside "
            "versatileffn, and give its name as in a shell"
        )
    sys.argv = [tool, *arguments]
    return next(iter(found)).load()()


if __name__ == "__main__":
    if len(sys.argv) < 2:
        sys.exit("usage: python -m versatileffn.run TOOL [ARGUMENTS]")
    try:
        sys.exit(run(sys.argv[1], sys.argv[2:]))
    except ConfigError as error:
        sys.exit(f"error: {error}")
