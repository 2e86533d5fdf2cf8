"""The settings of each run: under which dtype, device and kernels it computed."""

from pathlib import Path

from pydantic import ValidationError

from stethoscope.errors import StoreError
from stethoscope.results import RunSettings
from stethoscope.store.schema import connection, insert, intact


def put_settings(database: Path, run_id: str, settings: RunSettings) -> None:
    """Record under which settings the run computes; one that goes on later keeps those it goes on with."""
    with connection(database, write=True) as opened:
        insert(opened, "settings", {"run_id": run_id, "body": settings.model_dump_json()}, "OR REPLACE")


def get_settings(database: Path, run_id: str) -> RunSettings | None:
    """Return the settings of the run, None where none were recorded.

    Raises:
        StoreError: a damaged row.
    """
    with connection(database) as opened:
        row = opened.execute("SELECT * FROM settings WHERE run_id = ?", (run_id,)).fetchone()
    if row is None:
        return None
    try:
        if intact(row):
            return RunSettings.model_validate_json(row["body"])
    except ValidationError:
        pass
    raise StoreError(
        f"the settings of run {run_id} are damaged",
        next_step="The result itself does not depend on them.",
        got="a row that is not as it was written",
    )
