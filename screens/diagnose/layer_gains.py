"""Layer gains on the Diagnose page: score and measured gain of each layer."""

from typing import Any

import streamlit as st

from screens.shared import jobs, loaded_model, mirror, opened, session, ui, watch
from stethoscope.errors import StethoscopeError
from stethoscope.figures import agreement
from stethoscope.records import GainSpec
from stethoscope.results import GainResult
from stethoscope.results.gain import POOLED
from stethoscope.store.fingerprints import known_fingerprints
from stethoscope.store.history import RunRecord
from stethoscope.store.measured import cost_text, measured_rate, scored_key

SLOT = "gain"


def spec_from_session() -> GainSpec:
    """Return the gain spec of the current diagnosis and task vector."""
    profile = session.profile()
    named: dict[str, Any] = {"top_n": profile.top_n} | opened.settings("gain")
    return GainSpec(
        diagnosis=session.diagnosis(silent=True),
        task_vector=profile.task_vector(st.session_state["task_vector"]),
        **named,
    )


def _view(spec: GainSpec) -> jobs.View:
    """Return the view of `spec`: its job, or a stored result of the same spec, weights and problems. Starts nothing.

    Weights that the worker has not hashed yet are not hashed here; the button's job also finds stored results.
    """
    held = st.session_state["slots"].get(SLOT, {})
    if held.get("spec") == jobs.spec_key(spec):
        view = jobs.look(SLOT)
        if view.result is not None or view.job is not None or view.error:
            return view
    store = jobs.front().store
    if any(_is_of(run, spec) for run in store.list_runs("gain")):
        known = known_fingerprints(spec)
        if known is not None and (found := store.find_result(spec, extra=known)) is not None:
            jobs.hold(SLOT, run=found.run_id, spec=spec)
            return jobs.look(SLOT)
    return jobs.View()


def _is_of(run: RunRecord, spec: GainSpec) -> bool:
    try:
        return run.state == "done" and run.spec == spec
    except StethoscopeError:
        return False  # a damaged row


def _measure(spec: GainSpec) -> None:
    """Start the study as a batch job, after interactive jobs."""
    jobs.begin(SLOT, spec, title="Measured gain of each layer")
    st.session_state["slots"][SLOT]["spec"] = jobs.spec_key(spec)


def _cost(spec: GainSpec) -> str:
    """Return the cost of the study, as the worker reports it; "" if the task vector has not been read."""
    model = jobs.loaded()
    ground = None if model is None else loaded_model.ground(spec.task_vector.name)
    if model is None or ground is None:
        return ""
    moved = {row.layer for row in ground.moved if row.side != "norm"}
    key = scored_key(spec.diagnosis.model, model.device.partition(":")[0])
    rate = measured_rate(jobs.front().store.database, key)
    return f"It scores {cost_text(spec.most_texts(len(moved)), rate)}."


def draw() -> None:
    """Draw the card: a button, then progress, then score and gain with the forest plot of predictors."""
    profile = session.profile()
    if not profile.task_vectors or profile.cannot_measure_gains() is not None:  # said above
        return
    spec = spec_from_session()
    subject = st.session_state["subject"]
    with ui.card("Does the score predict which layers help?", key="gain"):
        ui.opened_settings("gain")
        view = _view(spec)
        if view.error:
            ui.banner(view.error)
        if view.active:
            watch.watch(view, key="gain")
            return
        if not isinstance(view.result, GainResult):
            said = "Stopped before anything was measured. " if view.stopped else ""
            st.caption(
                f"{said}Injects the task vector into one layer at a time and compares the measured gain with each "
                f"score, the first-order effect, the relative update, a linear probe, depth, and {spec.random_sets} "
                f"random sets of {spec.top_n} layers, on {spec.n} {spec.split} problems per subject. {_cost(spec)}"
            )
            st.button("Measure each layer's gain", key="gain-start", type="primary", on_click=_measure, args=(spec,))
            return
        _draw_result(view.result, subject)


def _draw_result(result: GainResult, subject: str) -> None:
    """Draw both figures for the chosen subject or for all subjects."""
    st.session_state.setdefault("gain_rows", "all subjects")
    st.segmented_control(
        "Problems of",
        ["all subjects", "the subject"],
        required=True,
        **mirror.mirror("gain_rows", "gain-rows", "default"),
    )
    shown = POOLED if st.session_state["gain_rows"] == "all subjects" else subject
    rows = result.of_subject(shown)
    left, right = st.columns([1, 1])
    with left:
        st.markdown("**Score and measured gain**")
        ui.chart(
            agreement.scatter(result, shown, st.session_state["layers"]),
            key="gain-scatter",
            caption=agreement.caption(result, shown),
            rows=rows.cells,
            more={"Predictors": rows.predictors, "Controls": [cell for cell in result.cells if cell.is_control]},
        )
    with right:
        st.markdown("**How well each predictor ranks the layers**")
        ui.chart(
            agreement.forest(result, shown),
            key="gain-forest",
            caption=agreement.sets_caption(result, shown),
            rows=rows.agreement,
            more={"Sets": rows.sets},
        )
