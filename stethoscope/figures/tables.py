"""Export rows of a result as CSV, with the field names of the command line's JSON and unrounded numbers.

Spreadsheets interpret text that starts with = + - @ or a control character as a formula. Such text gets a leading
apostrophe, and so does text that already starts with one, so that `text_of_cell` can restore every text. Numbers are
not changed.
"""

import csv
import io
import re
from collections.abc import Mapping, Sequence

from stethoscope.records import Record

_FORMULA = re.compile(r"'*[=+\-@\t\r\n＝＋－＠]")


def to_csv(rows: Sequence[Record | Mapping[str, object]]) -> str:
    """Return `rows` (records of one class, or mappings of one set of names) as CSV with a header.

    None is empty, nested records are flattened with dots, and text is encoded for `text_of_cell`.
    """
    flat = [_flatten(row.model_dump(mode="json") if isinstance(row, Record) else row) for row in rows]
    if not flat:
        return ""
    stream = io.StringIO(newline="")
    writer = csv.writer(stream)  # lines end with CR LF (RFC 4180): with LF alone, a CR in a text is not quoted
    names = list(flat[0])
    writer.writerow(map(cell_of, names))
    writer.writerows([cell_of(row[name]) for name in names] for row in flat)
    return stream.getvalue()


def cell_of(value: object) -> object:
    """Return the cell content for `value`: unchanged, except for text that a spreadsheet would interpret as a
    formula."""
    return f"'{value}" if isinstance(value, str) and _FORMULA.match(value) else value


def text_of_cell(text: str) -> str:
    """Return the original text of a cell with content `text`."""
    return text[1:] if text.startswith("'") and _FORMULA.match(text) else text


def _flatten(fields: Mapping[str, object], prefix: str = "") -> dict[str, object]:
    flat: dict[str, object] = {}
    for name, value in fields.items():
        if isinstance(value, dict):
            flat |= _flatten(value, f"{prefix}{name}.")
        else:
            flat[prefix + name] = value
    return flat
