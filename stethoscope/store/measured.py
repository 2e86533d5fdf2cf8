"""Values measured with the model, one list per key, so that an interrupted measurement can be continued.

A key contains everything that determines the values (weights, items, device). Lists are checked against their digests
when they are read; a damaged list is measured again.
"""

import json
import time
from collections.abc import Sequence
from pathlib import Path
from statistics import median

from stethoscope.formatting import duration_text
from stethoscope.records import ModelRef
from stethoscope.store.ids import canonical_json, content_id
from stethoscope.store.schema import connection, insert, intact


def put_measured(database: Path, key: str, values: Sequence[float]) -> None:
    """Store finite `values` under `key`, replacing existing ones."""
    body = canonical_json(list(values)).decode()
    with connection(database, write=True) as opened:
        insert(opened, "measured", {"key": key, "body": body, "created_at": time.time()}, "OR REPLACE")


def get_measured(database: Path, key: str) -> list[float] | None:
    """Return the values stored under `key`; None if they are missing or damaged."""
    with connection(database) as opened:
        row = opened.execute("SELECT * FROM measured WHERE key = ?", (key,)).fetchone()
    if row is None or not intact(row):
        return None
    return [float(value) for value in json.loads(row["body"])]


def scored_key(model: ModelRef, device_type: str) -> str:
    """Return the key for the scoring speed of `model` on a device type ("cpu", "cuda"), in gold solutions per
    second."""
    return f"texts scored per second: {content_id(model)}, {device_type}"


def measured_rate(database: Path, key: str) -> float | None:
    """Return the median of the rates stored under `key`; None if there are none."""
    known = get_measured(database, key)
    return median(known) if known else None


def cost_text(n_texts: int, texts_per_s: float | None) -> str:
    """Return a text with the maximum number of texts to score and the estimated time."""
    took = (
        f"about {duration_text(n_texts / texts_per_s)}" if texts_per_s else "duration not yet measured on this machine"
    )
    return f"at most {n_texts:,} texts, {took}"
