"""Frozen predictions: claims about layers by content id, with the time and the newest run when each was stored.

A prediction counts only if it cannot be changed later: storing it again keeps the first time, the table rejects updates
and deletions, and records are checked against their ids when they are read.
"""

import sqlite3
import time
from pathlib import Path
from typing import NamedTuple

from pydantic import ValidationError

from stethoscope.errors import StoreError
from stethoscope.records import Prediction
from stethoscope.store.ids import content_id
from stethoscope.store.schema import connection, insert, intact


class StoredPrediction(NamedTuple):
    """A prediction with its content id and when it was frozen.

    Attributes:
        created_at: seconds since 1970 according to the machine's clock, for display only.
        runs_before: `RunRecord.sequence` of the newest run at that time (0: none); later runs have larger numbers.
    """

    prediction_id: str
    prediction: Prediction
    created_at: float
    runs_before: int


def put_prediction(database: Path, prediction: Prediction) -> str:
    """Store `prediction` and return its content id; storing it again changes nothing, not even its time.

    A damaged prediction is frozen again with the current time.
    """
    prediction_id = content_id(prediction)
    with connection(database, write=True) as opened:
        known = opened.execute("SELECT * FROM predictions WHERE prediction_id = ?", (prediction_id,)).fetchone()
        if known is None or not _is_sound(known):
            (newest,) = opened.execute("SELECT COALESCE(MAX(sequence), 0) FROM runs").fetchone()
            what = {"prediction_id": prediction_id, "body": prediction.model_dump_json()}
            when = {"created_at": time.time(), "runs_before": newest}
            insert(opened, "predictions", what | when, "OR REPLACE")
    return prediction_id


def list_predictions(database: Path) -> list[StoredPrediction]:
    """Return the stored predictions, newest first, without damaged ones."""
    with connection(database) as opened:
        rows = opened.execute("SELECT * FROM predictions ORDER BY rowid DESC").fetchall()
    listed: list[StoredPrediction] = []
    for row in rows:
        try:
            listed.append(_read(row))
        except StoreError:
            continue
    return listed


def _is_sound(row: sqlite3.Row) -> bool:
    try:
        return bool(_read(row))
    except StoreError:
        return False


def _read(row: sqlite3.Row) -> StoredPrediction:
    prediction_id = row["prediction_id"]
    try:
        prediction = Prediction.model_validate_json(row["body"])
    except ValidationError as error:
        raise StoreError(
            f"prediction {prediction_id} is damaged",
            got=error.errors()[0]["msg"],
            expected="a prediction in the format of this version",
            next_step="Freeze it again; it gets a new time.",
        ) from error
    if content_id(prediction) != prediction_id or not intact(row):
        raise StoreError(
            f"prediction {prediction_id} is damaged",
            next_step="Freeze it again; it gets a new time.",
            got="a row that was modified or corrupted",
        )
    return StoredPrediction(prediction_id, prediction, row["created_at"], row["runs_before"])
