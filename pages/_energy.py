"""The lower half of Diagnose: how much of the task vector the subject's latents span, against chance."""

import streamlit as st

from pages import _jobs, _session, _ui, _watch
from stethoscope.figures import energy
from stethoscope.figures.theme import pretty
from stethoscope.records import EnergySpec
from stethoscope.results import DiagnosisResult, EnergyResult


def draw(diagnosis: DiagnosisResult) -> None:
    """Ask for the energy of the chosen subject and draw retention curves and enrichment."""
    profile, subject = _session.profile(), st.session_state["subject"]
    chosen = st.session_state
    spec = EnergySpec(
        diagnosis=profile.diagnose_spec(control=chosen["control"], score=chosen["score"], top_k=int(chosen["top_k"])),
        task_vector=profile.task_vector(chosen["task_vector"]),
        subject=subject,
        k=_session.ENERGY_K,
    )
    with _ui.card("Energy of the task vector in the span of the subject's latents", key="energy"):
        view = _jobs.ask("energy", spec, title=f"Energy, {pretty(subject)}")
        if view.error:
            _ui.banner(view.error)
            st.button("Try again", key="energy-again", on_click=_jobs.forget, args=("energy",))
        elif view.active:
            _watch.watch(view, key="energy")
        elif view.stopped:
            st.caption("Stopped.")
            st.button("Compute the energy", key="energy-again", on_click=_jobs.forget, args=("energy",))
        result = view.result
        if not isinstance(result, EnergyResult):
            return
        chosen.setdefault("energy_k", result.k[len(result.k) // 2])
        if chosen["energy_k"] not in result.k:
            chosen["energy_k"] = result.k[0]
        st.segmented_control("k latents", result.k, required=True, **_session.mirror("energy_k", "energy-k"))
        k, picked = chosen["energy_k"], chosen["layers"]
        shown = picked or list(diagnosis.order.get(subject, ())[: profile.top_n])
        note = energy.caption(result, k)
        left, right = st.columns(2)
        with left:
            st.markdown("**Energy kept against k**" + ("" if picked else " (best layers; none is picked)"))
            figure = energy.retention_curves(result, shown, k)
            _ui.chart(figure, key="retention", caption=note, rows=result.layers, more={"Matrices": result.cells})
        with right:
            st.markdown(f"**Enrichment by layer at k = {k}**")
            figure = energy.enrichment_bars(result, k, picked)
            rows = [cell for cell in result.layers if cell.k == k]
            _ui.chart(figure, key="enrichment", caption=note, rows=rows)
