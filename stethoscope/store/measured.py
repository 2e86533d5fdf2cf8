"""Values that took a pass of the model, one list a key, so that a long measurement goes on where it was stopped.

A key says what decides the values (weights, items, device). What is read is checked against its digest; a damaged list
is as good as none: it is measured again.
"""

import json
import time
from collections.abc import Sequence
from pathlib import Path
from statistics import median

from stethoscope.progress import duration_text
from stethoscope.records import ModelRef
from stethoscope.store.ids import canonical_json, content_id
from stethoscope.store.schema import connection, insert, intact


def put_measured(database: Path, key: str, values: Sequence[float]) -> None:
    """Store finite `values` under `key`, in place of what was there."""
    body = canonical_json(list(values)).decode()
    with connection(database, write=True) as opened:
        insert(opened, "measured", {"key": key, "body": body, "created_at": time.time()}, "OR REPLACE")


def get_measured(database: Path, key: str) -> list[float] | None:
    """Return the values stored under `key`; None where there are none, or they are damaged."""
    with connection(database) as opened:
        row = opened.execute("SELECT * FROM measured WHERE key = ?", (key,)).fetchone()
    if row is None or not intact(row):
        return None
    return [float(value) for value in json.loads(row["body"])]


def scored_key(model: ModelRef, device_type: str) -> str:
    """Return the key of how many gold solutions of `model` are scored per second on a device ("cpu", "cuda")."""
    return f"texts scored per second: {content_id(model)}, {device_type}"


def measured_rate(database: Path, key: str) -> float | None:
    """Return the median of the rates stored under `key`; None where there are none."""
    known = get_measured(database, key)
    return median(known) if known else None


def cost_text(n_texts: int, texts_per_s: float | None) -> str:
    """Return in words how many texts are scored at most, and how long that takes at a measured rate."""
    took = f"about {duration_text(n_texts / texts_per_s)}" if texts_per_s else "how long has not been measured here yet"
    return f"at most {n_texts:,} texts, {took}"
