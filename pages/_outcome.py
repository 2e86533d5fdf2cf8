"""Did a frozen prediction beat its controls? Drawn under the benchmark that puts it to the test."""

import time
from functools import lru_cache
from typing import Any

import streamlit as st

from pages import _jobs, _ui
from stethoscope import predictions
from stethoscope.figures import predictions as figures
from stethoscope.figures.theme import pretty
from stethoscope.predictions import BenchRun
from stethoscope.recipes import shown_layers
from stethoscope.records import BenchSpec
from stethoscope.results import BenchResult
from stethoscope.store.ids import short_id

SHOWN = 3
TO_ADD = {
    "random": "random layers (at least two draws)",
    "bottom": "bottom layers",
    "last": "last layers",
    "all": "all layers",
}


@lru_cache(maxsize=512)
def _parsed(spec_json: str) -> BenchSpec:
    return BenchSpec.model_validate_json(spec_json)


def bench_runs() -> list[BenchRun]:
    """Return every benchmark of the store, whatever became of it, deleted ones too; damaged rows are left out."""
    runs = []
    for run in _jobs.front().store.list_runs("bench", -1, deleted=True):
        try:
            runs.append(BenchRun(run.run_id, run.sequence, _parsed(run.spec_json)))
        except ValueError:  # pydantic's
            continue
    return runs


def clock(seconds: float) -> str:
    """Return a time (seconds since 1970) as people read it, in UTC."""
    return time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime(seconds))


def draw(run_id: str, result: BenchResult) -> None:
    """Draw the newest frozen predictions that the benchmark `run_id` puts to the test."""
    runs = bench_runs()
    run = next((run for run in runs if run.run_id == run_id), None)
    if run is None:
        return
    shown = 0
    for stored in _jobs.front().store.list_predictions():
        found = predictions.outcome(stored.prediction, stored.runs_before, run, result, runs)
        if found is not None and shown < SHOWN:
            _card(stored, found, run.spec.margin)
            shown += 1


def _card(stored: Any, found: predictions.Outcome, margin: float) -> None:
    prediction = stored.prediction
    layers, key = shown_layers(prediction.recipe.layers), f"outcome-{short_id(stored.prediction_id)}"
    title = f"Frozen prediction: layers {layers} ({prediction.picked}, {pretty(prediction.subject)})"
    with _ui.card(title, key=f"{key}-card"):
        when = clock(stored.created_at)
        if found.frozen_first:
            st.markdown(f"Frozen on {when}, before this run.")
        else:
            st.warning(f"Frozen on {when}, after this run started, so it does not count as a prediction.")
        if found.used_before:
            many = ", ".join(found.used_before[:3])
            st.warning(f"This edit had answered problems of this split before it was frozen (run {many}): "
                       "the outcome below is not independent of the pick.")  # fmt: skip
        if not found.same_recipe:
            st.caption(f"The arm “{_ui.escape(found.arm)}” edits the same layers raw, but is not the frozen "
                       "recipe itself (strengths, filter or what else moves).")  # fmt: skip
        if found.rows:
            figure, note = figures.against_controls(found.rows, margin), figures.caption(found.rows, margin)
            _ui.chart(figure, key=key, caption=note, rows=found.rows)
        if found.missing:
            st.info("To judge the pick, add: " + ", ".join(TO_ADD[kind] for kind in found.missing) + ".")
