"""Tables for terminals of any width: wide tables are folded, and numbers are never truncated.

Every row starts with its key (a subject, a layer). If not all columns fit, the table continues below with the same
keys. Keys can be broken over lines, other cells cannot. All output is literal text: no string is interpreted as markup,
an emoji name or a terminal command.
"""

from collections.abc import Sequence
from typing import IO, Any

from rich.cells import cell_len
from rich.console import Console
from rich.table import Table
from rich.text import Text

from stethoscope.errors import printable

Cell = str | Text


class PlainConsole(Console):
    """A console that prints all strings literally; only `Text` has styles.

    Args:
        quiet: print nothing.
        width: columns (None: the terminal's).
        file: where to print (None: stdout).
    """

    def __init__(self, *, quiet: bool = False, width: int | None = None, file: IO[str] | None = None) -> None:
        super().__init__(quiet=quiet, width=width, file=file, markup=False, emoji=False, highlight=False)

    def render_str(self, text: str, **options: Any) -> Text:
        """Return `text` as a rich object."""
        return super().render_str(printable(text), **options)


def print_table(
    console: Console,
    columns: Sequence[str],
    rows: Sequence[Sequence[Cell]],
    *,
    keys: int = 1,
    title: str = "",
    caption: str = "",
) -> None:
    """Print `rows` with `columns`; the first `keys` columns are repeated in every fold of the table.

    Args:
        title, caption: lines above and below; omitted if empty.
    """
    if title:
        console.print(title, style="italic")
    start = keys
    while start < len(columns) or start == keys:
        end = _fold_end(console.width, columns, rows, keys, start)
        shown = [*range(keys), *range(start, end)]
        table = Table()
        for index in shown:
            table.add_column(columns[index], no_wrap=index >= keys)
        for row in rows:
            table.add_row(*(row[index] for index in shown))
        console.print(table)
        start = max(end, keys + 1)
    if caption:
        console.print(caption, style="dim")


def _fold_end(width: int, columns: Sequence[str], rows: Sequence[Sequence[Cell]], keys: int, start: int) -> int:
    """Return the first column from `start` on that does not fit; at least one column is always included."""

    def widest(index: int) -> int:
        cells = [printable(str(cell)) for cell in (columns[index], *(row[index] for row in rows))]
        pieces = [word for cell in cells for word in cell.split()] if index < keys else cells
        return max(map(cell_len, pieces), default=0)

    left = width - 1 - sum(widest(index) + 3 for index in range(keys))  # a cell's padding and one border
    for index in range(start, len(columns)):
        left -= widest(index) + 3
        if left < 0 and index > start:
            return index
    return len(columns)
