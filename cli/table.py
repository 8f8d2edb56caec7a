"""Tables in the terminal. Nothing in them is cut, since ids are there to be copied: where the terminal is narrower than
a table, its lines wrap; into a file or a pipe they are as long as they are.
"""

from collections.abc import Collection, Iterable, Sequence

from rich.console import Console
from rich.measure import Measurement
from rich.table import Table
from rich.text import Text

LONGEST_LINE = 10_000


def print_table(columns: Sequence[str], rows: Iterable[Sequence[str]], *, numbers: Collection[str] = ()) -> None:
    """numbers: the columns that stand to the right."""
    table = Table(box=None, padding=(0, 2, 0, 0))
    for column in columns:
        table.add_column(column, no_wrap=True, justify="right" if column in numbers else "left")
    for row in rows:
        table.add_row(*map(Text, row))
    console = Console()
    width = Measurement.get(console, console.options.update(max_width=LONGEST_LINE), table).maximum
    Console(width=max(console.width, width)).print(table)
