"""Stability of the layer order under other scores, other k and other control corpora."""

import streamlit as st

from screens.shared import jobs, opened, ui, watch
from stethoscope.figures import stability
from stethoscope.formatting import pretty
from stethoscope.records import DiagnoseSpec, StabilitySpec
from stethoscope.results import DiagnosisResult, StabilityResult


def other_control(spec: DiagnoseSpec) -> jobs.View:
    """Request the same diagnosis against the next control corpus; return an empty view if there is only one."""
    names = spec.problems.control_names
    if len(names) < 2:
        return jobs.View()
    other = names[(names.index(spec.control) + 1) % len(names)]
    changed = spec.model_copy(update={"control": other})
    title = f"Diagnosis against {pretty(other)}"
    return watch.by_itself("diagnosis-other", changed, title=title, button=f"Also diagnose against {pretty(other)}")


def spec_of(diagnosis: DiagnoseSpec) -> StabilitySpec:
    """Return the stability spec of `diagnosis`."""
    return StabilitySpec(diagnosis=diagnosis, **opened.settings("stability"))


def draw(diagnosis: DiagnosisResult, spec: DiagnoseSpec) -> None:
    """Compute the stability of `spec` and draw the chosen subject's ranks under all variants."""
    subject = st.session_state["subject"]
    with ui.card(f"{pretty(subject).capitalize()}: is the layer order stable?", key="stability-card"):
        asked = spec_of(spec)
        ui.opened_settings("stability")
        view = watch.by_itself("stability", asked, title="Stability of the layer order", button="Compare layer orders")
        watch.standing(view, "stability", "Compare layer orders")
        result = view.result
        if isinstance(result, StabilityResult) and subject in diagnosis.subjects:
            ui.chart(
                stability.rank_heatmap(result, subject),
                key="stability",
                caption=stability.caption(result, subject),
                rows=stability.numbers(result, subject),
            )
