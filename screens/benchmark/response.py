"""Accuracy over alpha for benchmarks of one recipe at several strengths."""

import streamlit as st

from screens.shared import mirror, ui
from stethoscope.figures import accuracy_dose
from stethoscope.formatting import pretty
from stethoscope.judging import arms
from stethoscope.results import ALL_SUBJECTS, BenchResult


def draw(result: BenchResult) -> None:
    """Draw the dose-response of `result`, if it is a sweep."""
    alphas = arms.swept_alphas(result.spec.arms)
    if not alphas:
        return
    controls = [name for name in result.spec.subjects if name in result.spec.problems.control_names]
    subjects = [ALL_SUBJECTS, *(name for name in result.spec.subjects if name not in controls)]
    if st.session_state.get("response_subject") not in subjects:
        st.session_state["response_subject"] = subjects[0]
    with ui.card("Dose-response curve: accuracy at every master alpha", key="response-card"):
        st.selectbox(
            "Curve of",
            subjects,
            width=260,
            format_func=lambda name: "all subjects" if name == ALL_SUBJECTS else pretty(name),
            **mirror.mirror("response_subject", "response-subject"),
        )
        subject = st.session_state["response_subject"]
        figure = accuracy_dose.curves(result, alphas, subject=subject, controls=controls)
        note = accuracy_dose.caption(result, alphas, result.spec.split, subject)
        rows = [point._asdict() for point in accuracy_dose.points(result, alphas, subject)]
        ui.chart(figure, key="response", caption=note, rows=rows)
