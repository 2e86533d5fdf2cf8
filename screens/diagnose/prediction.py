"""Freeze a prediction: the pick with its scores and the time, before any benchmark."""

import streamlit as st

from screens.shared import benchmarks, edit_recipe, jobs, session, ui
from stethoscope.formatting import pretty
from stethoscope.judging import predictions
from stethoscope.recipes.files import shown_layers
from stethoscope.records import DiagnoseSpec, Prediction
from stethoscope.results import DiagnosisResult
from stethoscope.store.ids import content_id, short_id

HOW = {"top": "the top {n}", "bottom": "the bottom {n}", "random": "{n} drawn at random", "hand": "picked by hand"}


def prediction_of(result: DiagnosisResult, spec: DiagnoseSpec) -> Prediction:
    """Return the session's pick as a prediction based on `result` of the diagnosis `spec`."""
    chosen = st.session_state
    subject, recipe = chosen["subject"], edit_recipe.from_session(session.profile())
    how = predictions.how_picked(
        recipe.layers.keys(), result.order.get(subject, ()), result.n_layers, chosen["picked_seed"]
    )
    scores = {cell.layer: cell.score for cell in result.cells if cell.subject == subject}
    return Prediction(
        recipe=recipe,
        diagnosis=spec,
        subject=subject,
        picked=how,
        seed=chosen["picked_seed"] if how == "random" else None,
        scores=tuple(scores.get(layer) for layer in recipe.layers),
    )


def in_words(prediction: Prediction) -> str:
    """Return the claim, and how the layers were picked, as text."""
    spec, n = prediction.diagnosis, len(prediction.recipe.layers)
    how = HOW[prediction.picked].format(n=n) + (f" (seed {prediction.seed})" if prediction.seed is not None else "")
    return (
        f"Claim: editing layers {shown_layers(prediction.recipe.layers)} ({how}; {pretty(prediction.subject)} by "
        f"{pretty(spec.score)} against {pretty(spec.control)}, k = {spec.top_k}) beats equally strong edits of the "
        f"same number of random, bottom and last layers. {edit_recipe.words(prediction.recipe)}"
    )


def table() -> None:
    """Draw the frozen predictions, newest first."""
    rows = [
        {
            "frozen": benchmarks.clock(stored.created_at),
            "subject": pretty(stored.prediction.subject),
            "layers": shown_layers(stored.prediction.recipe.layers),
            "picked": stored.prediction.picked,
            "score": pretty(stored.prediction.diagnosis.score),
            "mean score": _mean(stored.prediction),
            "alpha": stored.prediction.recipe.master_alpha,
            "prediction": short_id(stored.prediction_id),
        }
        for stored in jobs.front().store.list_predictions()
    ]
    if rows:
        number = {"mean score": st.column_config.NumberColumn(format="%.3f")}
        ui.table(rows, key="predictions", column_config=number, alt="Frozen predictions, newest first")


def _mean(prediction: Prediction) -> float | None:
    known = [score for score in prediction.scores if score is not None]
    return sum(known) / len(known) if known else None


def draw(result: DiagnosisResult, spec: DiagnoseSpec | None) -> None:
    """Draw the claim, the freeze button, and frozen predictions; `spec` None: the diagnosis is out of date."""
    store = jobs.front().store
    with ui.card("Preregister this pick", key="freeze"):
        if not st.session_state["layers"]:
            st.caption("Pick layers above. After a benchmark, the frozen pick is compared with its controls.")
        elif not session.profile().task_vectors:
            st.caption("A prediction needs a task vector, and none is set yet.")
        elif spec is None:
            st.caption("The diagnosis is being updated. You can freeze the pick when it is finished.")
        else:
            prediction = prediction_of(result, spec)
            st.caption(ui.escape(f"{in_words(prediction)} {edit_recipe.line(prediction.recipe)}".strip()))
            known = {stored.prediction_id: stored.runs_before for stored in store.list_predictions()}
            runs_before = known.get(content_id(prediction))
            runs = predictions.runs_of(prediction.recipe, benchmarks.bench_runs())
            if used := [run for run in runs if runs_before is None or run.sequence <= runs_before]:
                st.warning(
                    f"This edit has already been benchmarked (run {used[0].run_id}), so it does not count as a "
                    "prediction for those problems."
                )
            ui.store_button(
                "Freeze prediction" if runs_before is None else "Frozen",
                key="freeze-prediction",
                write=store.put_prediction,
                args=(prediction,),
                disabled=runs_before is not None,
            )
        table()
