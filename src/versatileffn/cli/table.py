"""A table on the terminal."""

from collections.abc import Mapping, Sequence


def print_table(title: str, columns: Mapping[str, Sequence[str]]) -> None:
    """Print cells below their headings, the first column to the left, numbers to the right.

    Args:
        title: any text, or none.
        columns: cells by heading; rich's markup is read in both.
    """
    from rich import box
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    table = Table(title=escape(title) or None, box=box.SIMPLE_HEAD)
    for number, heading in enumerate(columns):
        table.add_column(heading, justify="right" if number else "left", no_wrap=True)
    for cells in zip(*columns.values(), strict=True):
        table.add_row(*cells)
    Console().print(table)
