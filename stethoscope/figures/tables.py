"""Rows of a result as CSV text: the same field names as the command line's JSON, unrounded."""

import csv
import io
from collections.abc import Sequence

from stethoscope.records import Record


def to_csv(rows: Sequence[Record]) -> str:
    """Return `rows` (all of one class) as CSV with a header; None is empty, nested records are flattened by a dot."""
    flat = [_flatten(row.model_dump(mode="json")) for row in rows]
    if not flat:
        return ""
    stream = io.StringIO()
    writer = csv.DictWriter(stream, fieldnames=list(flat[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(flat)
    return stream.getvalue()


def _flatten(fields: dict[str, object], prefix: str = "") -> dict[str, object]:
    flat: dict[str, object] = {}
    for name, value in fields.items():
        if isinstance(value, dict):
            flat |= _flatten(value, f"{prefix}{name}.")
        else:
            flat[prefix + name] = value
    return flat
