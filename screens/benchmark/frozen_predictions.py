"""Outcome of frozen predictions, shown with the benchmark that tests them."""

import streamlit as st

from screens.shared import benchmarks, jobs, ui
from stethoscope.figures import layer_claims as figures
from stethoscope.formatting import pretty
from stethoscope.judging import predictions
from stethoscope.recipes.files import shown_layers
from stethoscope.results import BenchResult
from stethoscope.store.ids import short_id
from stethoscope.store.predictions import StoredPrediction

SHOWN = 3
TO_ADD = {
    "random": "random layers (at least two draws)",
    "bottom": "bottom layers",
    "last": "last layers",
    "all": "all layers",
}


def draw(run_id: str, result: BenchResult) -> None:
    """Draw the newest frozen predictions that the benchmark `run_id` tests."""
    runs = benchmarks.bench_runs()
    run = next((run for run in runs if run.run_id == run_id), None)
    if run is None:
        return
    shown = 0
    for stored in jobs.front().store.list_predictions():
        found = predictions.outcome(stored.prediction, stored.runs_before, run, result, runs)
        if found is not None and shown < SHOWN:
            _card(stored, found, run.spec.margin)
            shown += 1


def _card(stored: StoredPrediction, found: predictions.Outcome, margin: float) -> None:
    prediction = stored.prediction
    layers, key = shown_layers(prediction.recipe.layers), f"outcome-{short_id(stored.prediction_id)}"
    title = f"Frozen prediction: layers {layers} ({prediction.picked}, {pretty(prediction.subject)})"
    with ui.card(title, key=f"{key}-card"):
        when = benchmarks.clock(stored.created_at)
        if found.frozen_first:
            st.markdown(f"Frozen on {when}, before this run.")
        else:
            st.warning(f"Frozen on {when}, after this run started, so it does not count as a prediction.")
        if found.used_before:
            many = ", ".join(found.used_before[:3])
            st.warning(
                f"This edit answered problems of this split before the prediction was frozen (run {many}), so the "
                "outcome below is not independent of the pick."
            )
        if not found.same_recipe:
            st.caption(
                f"The arm “{ui.escape(found.arm)}” edits the same layers with the raw task vector, but differs from "
                "the frozen recipe (in strengths, edit type or other edited weights)."
            )
        if found.rows:
            figure, note = figures.against_controls(found.rows, margin), figures.caption(found.rows, margin)
            ui.chart(figure, key=key, caption=note, rows=found.rows)
        if found.missing:
            st.info("To test the pick, add: " + ", ".join(TO_ADD[kind] for kind in found.missing) + ".")
