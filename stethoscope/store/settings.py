"""Settings of each run: dtype, device and kernels."""

from pathlib import Path

from pydantic import ValidationError

from stethoscope.errors import StoreError
from stethoscope.results import RunSettings
from stethoscope.store.schema import connection, insert, intact


def put_settings(database: Path, run_id: str, settings: RunSettings) -> None:
    """Record the settings of a run; a run that continues later has the settings of its continuation."""
    with connection(database, write=True) as opened:
        insert(opened, "settings", {"run_id": run_id, "body": settings.model_dump_json()}, "OR REPLACE")


def get_settings(database: Path, run_id: str) -> RunSettings | None:
    """Return the settings of the run; None if none were recorded.

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
        next_step="The result itself is not affected.",
        got="a row that was modified or corrupted",
    )
