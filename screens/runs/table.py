"""Table of runs with short descriptions and recipes."""

from collections.abc import Callable, Sequence

import pandas as pd
import streamlit as st

from screens.shared import ui
from stethoscope.errors import StethoscopeError
from stethoscope.formatting import pretty
from stethoscope.records import EditRecipe
from stethoscope.store.history import RunRecord, recipes_of


def recipes_by_run(runs: Sequence[RunRecord]) -> dict[str, EditRecipe]:
    """Return every recipe of `runs` by run and arm; none for damaged rows, which the table marks."""
    found: dict[str, EditRecipe] = {}
    for run in runs:
        try:
            found |= {f"{run.run_id} · {name}": recipe for name, recipe in recipes_of(run.spec).items()}
        except StethoscopeError:
            continue
    return found


def summary(run: RunRecord) -> str:
    """Return a short description of the run; says so if the row is damaged."""
    return pretty(run.about)


def picked(rows: Sequence[int], runs: Sequence[RunRecord]) -> str | None:
    """Return the id of the run whose row was selected; None if the selection was cleared."""
    return runs[rows[0]].run_id if rows and rows[0] < len(runs) else None


def table(runs: Sequence[RunRecord], select: Callable[[str], None]) -> None:
    """Draw the table of runs, pinned runs first; `select` is called with the id of the run whose row is clicked."""

    def take_row() -> None:
        if (run_id := picked(st.session_state["runs-table"].selection.rows, runs)) is not None:
            select(run_id)

    rows = [
        {
            "pinned": run.pinned,
            "started": pd.to_datetime(run.created_at, unit="s", utc=True),
            "kind": pretty(run.kind),
            "about": run.title or summary(run),
            "state": run.state,
            "seconds": run.elapsed_s,
            "run": run.run_id,
        }
        for run in runs
    ]
    columns = {
        "pinned": st.column_config.CheckboxColumn("pinned", width="small"),
        "started": st.column_config.DatetimeColumn("started, UTC", format="YYYY-MM-DD HH:mm:ss"),
        "about": st.column_config.TextColumn("about", width="large"),
        "seconds": st.column_config.NumberColumn("seconds", format="%.1f"),
    }
    ui.table(
        rows,
        column_config=columns,
        key="runs-table",
        alt="Stored runs",
        on_select=take_row,
        selection_mode="single-row",
    )
