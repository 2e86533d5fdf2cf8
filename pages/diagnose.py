"""Diagnose: which layers carry the skill? Specificity heatmap to pick layers on, and energy retention."""

import streamlit as st

from pages import _gain, _jobs, _mirror, _pick, _session, _stability, _status, _ui, _watch
from stethoscope.figures.theme import pretty
from stethoscope.records import SCORE_NAMES, DiagnoseSpec
from stethoscope.results import DiagnosisResult


def spec_from_controls() -> DiagnoseSpec:
    """Draw the controls and return the diagnosis that they describe."""
    profile = _session.profile()
    first, second, third, fourth = st.columns([2, 2, 2, 1.4])
    first.selectbox(
        "Subject", profile.problems.subjects, format_func=pretty, **_mirror.mirror("subject", "subject-select")
    )
    second.selectbox(
        "Control corpus",
        profile.problems.control_names,
        format_func=pretty,
        **_mirror.mirror("control", "control-select"),
    )
    third.selectbox("Score", SCORE_NAMES, format_func=pretty, **_mirror.mirror("score", "score-select"))
    fourth.number_input(
        "Latents k",
        step=1,
        help="Latents selected per layer and subject",
        **_mirror.bounds("top_k", *_session.LATENTS),
        **_mirror.mirror("top_k", "top-k", "value"),
    )
    _ui.opened_settings("diagnose")
    return _session.diagnosis()


def main() -> None:
    """Draw the page."""
    _ui.heading("Diagnose", "Which layers carry the skill? Click a cell to pick its layer; the box tool picks a range.")
    if (why := _session.profile().cannot_listen()) is not None:
        _ui.missing(why)
        _gain.draw()
        _session.link()
        return
    spec = spec_from_controls()
    view = _jobs.ask("diagnosis", spec, title="Diagnosis")
    st.session_state["diagnosis_run"] = view.run_id
    _status.show_base()
    _status.recorded(view)
    _watch.standing(view, "diagnosis", "Listen again", stopped="The diagnosis was stopped.")
    address = {"run": view.run_id, "job": view.job.job_id if view.active else None}
    if isinstance(view.result, DiagnosisResult):
        _pick.draw(view.result, None if view.stale else spec, address)
        if not view.stale:
            _stability.draw(view.result, spec)
        _gain.draw()
    else:
        _session.link(**address)


_session.run_page(main)
