"""Values that took a pass of the model, one list a key, so that a long measurement goes on where it was stopped.

A key says what decides the values (weights, items, device). What is read is checked against its digest; a damaged list
is as good as none: it is measured again.
"""

import json
import time
from collections.abc import Sequence
from pathlib import Path

from stethoscope.store.ids import canonical_json
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
