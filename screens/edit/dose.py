"""Dose-response curve on the Edit page: the likelihood check at every master alpha, computed in the background."""

import streamlit as st

from screens.shared import jobs, mirror, opened, session, ui, watch
from stethoscope.figures import dose
from stethoscope.formatting import pretty
from stethoscope.records import DoseSpec, EditRecipe
from stethoscope.results import ALL_SUBJECTS, DoseResult, ProbeResult


def _curves(result: object, recipe: EditRecipe) -> None:
    subject = st.session_state["dose_subject"]
    if isinstance(result, DoseResult) and any(row.subject == subject for row in result.rows):
        figure = dose.curves(result, alpha=recipe.master_alpha, subject=subject)
        ui.chart(figure, key="dose", caption=dose.caption(result, subject), rows=result.rows)
    else:
        st.caption("Computing the first alpha; the likelihood check and text generation run first.")


def spec_of(recipe: EditRecipe) -> DoseSpec:
    """Return the dose spec of `recipe`."""
    return DoseSpec(recipe=recipe, problems=session.profile().problems, **opened.settings("dose"))


def draw(recipe: EditRecipe) -> None:
    """Draw the available part of the curve of `recipe`; it is computed in the background if it is fast."""
    profile = session.profile()
    spec = spec_of(recipe)
    ui.opened_settings("dose")
    probe = jobs.look("probe").result
    guess_s = len(spec.alphas) * probe.elapsed_s if isinstance(probe, ProbeResult) else None
    view = watch.by_itself("dose", spec, title="Dose-response curve", button="Compute the curve", guess_s=guess_s)
    if view == jobs.View():
        return
    st.session_state.setdefault("dose_subject", ALL_SUBJECTS)
    subjects = [ALL_SUBJECTS, *profile.problems.subjects]
    st.selectbox(
        "Curve of",
        subjects,
        width=260,
        format_func=lambda name: "all subjects" if name == ALL_SUBJECTS else pretty(name),
        **mirror.mirror("dose_subject", "dose-subject"),
    )
    if view.error:
        ui.banner(view.error)
        st.button("Try again", key="dose-again", on_click=jobs.forget, args=("dose",))
    elif view.active:
        watch.watch(view, key="dose", draw=lambda job: _curves(job.partial, recipe))
    elif view.stopped:
        st.caption("Stopped.")
        st.button("Resume", key="dose-again", on_click=jobs.forget, args=("dose",))
        _curves(view.job and view.job.partial, recipe)
    else:
        _curves(view.result, recipe)
