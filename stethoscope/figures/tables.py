"""Rows of a result as CSV text: the same field names as the command line's JSON, unrounded."""

import csv
import io
from collections.abc import Mapping, Sequence

from stethoscope.records import Record


def to_csv(rows: Sequence[Record | Mapping[str, object]]) -> str:
    """Return `rows` (records of one class, or mappings of one set of names) as CSV with a header.

    None is empty, nested records are flattened by a dot.
    """
    flat = [_flatten(row.model_dump(mode="json") if isinstance(row, Record) else row) for row in rows]
    if not flat:
        return ""
    stream = io.StringIO()
    writer = csv.DictWriter(stream, fieldnames=list(flat[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(flat)
    return stream.getvalue()


def _flatten(fields: Mapping[str, object], prefix: str = "") -> dict[str, object]:
    flat: dict[str, object] = {}
    for name, value in fields.items():
        if isinstance(value, dict):
            flat |= _flatten(value, f"{prefix}{name}.")
        else:
            flat[prefix + name] = value
    return flat
