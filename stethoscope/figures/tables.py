"""Rows of a result as CSV text: the same field names as the command line's JSON, unrounded.

A spreadsheet takes text that begins with one of = + - @ or a control character for a formula. Such text has an
apostrophe put before it, and so has text that already has one there, so that `text_of_cell` gives every text back.
Numbers stay as they are.
"""

import csv
import io
import re
from collections.abc import Mapping, Sequence

from stethoscope.records import Record

_FORMULA = re.compile(r"'*[=+\-@\t\r\n＝＋－＠]")


def to_csv(rows: Sequence[Record | Mapping[str, object]]) -> str:
    """Return `rows` (records of one class, or mappings of one set of names) as CSV with a header.

    None is empty, nested records are flattened by a dot, text is as `text_of_cell` reads it back.
    """
    flat = [_flatten(row.model_dump(mode="json") if isinstance(row, Record) else row) for row in rows]
    if not flat:
        return ""
    stream = io.StringIO(newline="")
    writer = csv.writer(stream)  # lines end in CR LF (RFC 4180): with LF alone a CR in a text is not quoted
    names = list(flat[0])
    writer.writerow(map(cell_of, names))
    writer.writerows([cell_of(row[name]) for name in names] for row in flat)
    return stream.getvalue()


def cell_of(value: object) -> object:
    """Return what stands in a cell for `value`: itself, but for text that a spreadsheet would take for a formula."""
    return f"'{value}" if isinstance(value, str) and _FORMULA.match(value) else value


def text_of_cell(text: str) -> str:
    """Return the text that stands in a cell as `text`."""
    return text[1:] if text.startswith("'") and _FORMULA.match(text) else text


def _flatten(fields: Mapping[str, object], prefix: str = "") -> dict[str, object]:
    flat: dict[str, object] = {}
    for name, value in fields.items():
        if isinstance(value, dict):
            flat |= _flatten(value, f"{prefix}{name}.")
        else:
            flat[prefix + name] = value
    return flat
