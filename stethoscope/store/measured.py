"""Values that took a pass of the model, one list a key, so that a long measurement goes on where it was stopped.

A key says what decides the values (weights, items, device). What is read is checked against its digest; a damaged list
is as good as none: it is measured again.
"""

import json
import time
from collections.abc import Sequence
from pathlib import Path

from stethoscope.store.ids import bytes_id, canonical_json
from stethoscope.store.schema import connection


def put_measured(database: Path, key: str, values: Sequence[float]) -> None:
    """Store finite `values` under `key`, in place of what was there."""
    body = canonical_json(list(values))
    with connection(database, write=True) as opened:
        opened.execute(
            "INSERT INTO measured VALUES (?, ?, ?, ?)"
            " ON CONFLICT DO UPDATE SET digest = excluded.digest, body = excluded.body",
            (key, bytes_id(body), body.decode(), time.time()),
        )


def get_measured(database: Path, key: str) -> list[float] | None:
    """Return the values stored under `key`; None where there are none, or they are damaged."""
    with connection(database) as opened:
        row = opened.execute("SELECT digest, body FROM measured WHERE key = ?", (key,)).fetchone()
    if row is None or bytes_id(str(row["body"]).encode()) != row["digest"]:
        return None
    return [float(value) for value in json.loads(row["body"])]
