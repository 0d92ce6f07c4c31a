"""A comparison of two runs, for the terminal."""

from __future__ import annotations

from rich.console import Console
from rich.table import Table

from tradeloop.common.evaluation.comparison import RunComparison


def print_comparison(comparison: RunComparison) -> None:
    """Write a table of the kinds of messages, and the lines below it, to standard output."""
    table = Table("", "live", "replay", "equal", "different", "missing", "extra", box=None, padding=(0, 2))
    for column in table.columns[1:]:
        column.justify = "right"
    for name, each in comparison.kinds.items():
        different, missing, extra = len(each.different), len(each.missing), len(each.extra)
        equal = len(each.live) - missing - different
        counts = (len(each.live), len(each.replay), equal, different, missing, extra)
        table.add_row(name, *(f"{count:,}" for count in counts))
    console = Console()
    console.print(table)
    for line in comparison.lines():
        console.print(line, soft_wrap=True, markup=False, highlight=False)
