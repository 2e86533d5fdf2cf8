"""Tables on a terminal of any width: what is too wide folds, and no number is ever cut short.

Every row begins with its key (a subject, a layer). Where all columns do not fit beside it, the table goes on below with
the same keys. Keys may break over lines, other cells may not.
"""

from collections.abc import Sequence

from rich.cells import cell_len
from rich.console import Console
from rich.table import Table
from rich.text import Text

Cell = str | Text


def print_table(
    console: Console,
    columns: Sequence[str],
    rows: Sequence[Sequence[Cell]],
    *,
    keys: int = 1,
    title: str = "",
    caption: str = "",
) -> None:
    """Draw `rows` under `columns`, the first `keys` of which begin every fold of the table; nothing is read as markup.

    Args:
        title, caption: lines above and below; none where empty.
    """
    if title:
        console.print(title, style="italic", markup=False)
    start = keys
    while start < len(columns) or start == keys:
        end = _fold_end(console.width, columns, rows, keys, start)
        shown = [*range(keys), *range(start, end)]
        table = Table()
        for index in shown:
            table.add_column(Text(columns[index]), no_wrap=index >= keys)
        for row in rows:
            table.add_row(*(Text(cell) if isinstance(cell, str) else cell for cell in (row[index] for index in shown)))
        console.print(table)
        start = max(end, keys + 1)
    if caption:
        console.print(caption, style="dim", markup=False)


def _fold_end(width: int, columns: Sequence[str], rows: Sequence[Sequence[Cell]], keys: int, start: int) -> int:
    """Return the first column from `start` on that does not fit; at least one does not stay behind."""

    def widest(index: int) -> int:
        cells = [columns[index], *(str(row[index]) for row in rows)]
        pieces = [word for cell in cells for word in cell.split()] if index < keys else cells
        return max(map(cell_len, pieces), default=0)

    left = width - 1 - sum(widest(index) + 3 for index in range(keys))  # a cell's padding and one line
    for index in range(start, len(columns)):
        left -= widest(index) + 3
        if left < 0 and index > start:
            return index
    return len(columns)
