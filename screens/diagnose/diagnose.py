"""Diagnose page: specificity heatmap for picking layers, and energy."""

import streamlit as st

from screens.diagnose import layer_gains, pick_layers, stability
from screens.shared import jobs, mirror, session, status, ui, watch
from stethoscope.formatting import pretty
from stethoscope.records import SCORE_NAMES, DiagnoseSpec
from stethoscope.results import DiagnosisResult


def spec_from_controls() -> DiagnoseSpec:
    """Draw the controls and return the diagnosis spec."""
    profile = session.profile()
    first, second, third, fourth = st.columns([2, 2, 2, 1.4])
    first.selectbox(
        "Subject", profile.problems.subjects, format_func=pretty, **mirror.mirror("subject", "subject-select")
    )
    second.selectbox(
        "Control corpus",
        profile.problems.control_names,
        format_func=pretty,
        **mirror.mirror("control", "control-select"),
    )
    third.selectbox("Score", SCORE_NAMES, format_func=pretty, **mirror.mirror("score", "score-select"))
    fourth.number_input(
        "Latents k",
        step=1,
        help="Latents selected per layer and subject",
        **mirror.bounds("top_k", *session.LATENTS),
        **mirror.mirror("top_k", "top-k", "value"),
    )
    ui.opened_settings("diagnose")
    return session.diagnosis()


def main() -> None:
    """Draw the page."""
    ui.heading(
        "Diagnose", "Find the layers that carry a skill. Click a cell to pick its layer; the box tool picks a range."
    )
    if (why := session.profile().cannot_listen()) is not None:
        ui.missing(why)
        layer_gains.draw()
        session.link()
        return
    spec = spec_from_controls()
    view = jobs.ask("diagnosis", spec, title="Diagnosis")
    st.session_state["diagnosis_run"] = view.run_id
    status.show_base()
    status.recorded(view)
    watch.standing(view, "diagnosis", "Measure again", stopped="The diagnosis was stopped.")
    address = {"run": view.run_id, "job": view.active_id}
    if isinstance(view.result, DiagnosisResult):
        pick_layers.draw(view.result, None if view.stale else spec, address)
        if not view.stale:
            stability.draw(view.result, spec)
        layer_gains.draw()
    else:
        session.link(**address)


main()
