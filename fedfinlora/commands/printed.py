"""A table of the report on a terminal."""

from __future__ import annotations

from fedfinlora.report.tables import Table


def print_table(shown: Table) -> None:
    """Print it, numbers to the right."""
    from rich.console import Console
    from rich.table import Table as Printed

    printed = Printed(box=None, pad_edge=False, header_style="bold")
    for column, name in enumerate(shown.head):
        printed.add_column(name, justify="right" if shown.css_class(column) == "number" else "left", overflow="fold")
    for row in shown.rows:
        printed.add_row(*row)
    Console(highlight=False, markup=False).print(printed)
