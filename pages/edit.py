"""Edit: what if I inject here? The recipe, the live probe, and base and edited text side by side."""

import streamlit as st

from pages import _compare, _dose, _history, _jobs, _recipe, _session, _share, _status, _strengths, _ui, _watch, _words
from pages._fragment import fragment
from stethoscope.figures import probe
from stethoscope.recipes import to_link
from stethoscope.records import EditRecipe, ProbeSpec
from stethoscope.results import DiagnosisResult, ProbeResult
from stethoscope.store.ids import content_id, short_id


def formula(recipe: EditRecipe) -> None:
    """Say the edit in words and symbols."""
    st.latex(_words.symbols(recipe))
    st.caption(_ui.escape(f"{_words.words(recipe)} {_recipe.line(recipe)}".strip()))


def live_probe(recipe: EditRecipe) -> None:
    """Ask for the probe of `recipe` by itself and draw the newest answer; the former one stays until then."""
    spec = ProbeSpec(recipe=recipe, problems=_session.profile().problems)
    view = _jobs.ask("probe", spec, title="Probe")

    @fragment(run_every=0.15 if view.active else None)
    def line() -> None:
        job = _jobs.front().snapshot(view.job.job_id) if view.active else view.job
        _jobs.draw_again(view.active and _jobs.ended(view.job.job_id))
        updating = view.active and job is not None
        st.caption(_ui.escape(f"Updating: {_watch.describe(job)}") if updating else "Up to date")

    if view.error:
        _ui.banner(view.error)
        st.button("Try again", key="probe-again", on_click=_jobs.forget, args=("probe",))
    elif view.stopped:
        st.caption("Stopped.")
        st.button("Probe again", key="probe-again", on_click=_jobs.forget, args=("probe",))
    else:
        line()
    if isinstance(view.result, ProbeResult):
        figure, note = probe.differences(view.result), probe.caption(view.result)
        _ui.chart(figure, key="probe", caption=note, rows=view.result.rows)
        if not view.stale:
            _status.show_certificate(view.result.certificate, recipe)


def pick_best() -> None:
    """Pick the best layers of the subject from the diagnosis on show, if there is one."""
    result = _jobs.look("diagnosis").result
    if isinstance(result, DiagnosisResult):
        order = result.order.get(st.session_state["subject"], ())
        _session.set_layers(order[: int(st.session_state["top_n"])])
    else:
        st.session_state["go"] = "diagnose"


def main() -> None:
    """Draw the page."""
    _ui.heading("Edit", "What if I inject here? The task vector is added to the picked layers while a job runs.")
    if st.session_state.pop("go", None):
        st.switch_page("pages/diagnose.py")
    profile = _session.profile()
    n_layers = _recipe.known_layers()
    if n_layers is None:
        _recipe.wait_for_model()
        return
    if not _recipe.has_task_vector("an edit", "edit"):
        return
    with _ui.card("Recipe"):
        _recipe.controls(n_layers)
        recipe = _recipe.from_session(profile)
        _strengths.draw(recipe, n_layers)
        formula(recipe)
        _history.remember(recipe)
        with st.container(horizontal=True, vertical_alignment="center", key="recipe-row"):
            _history.buttons()
            _share.draw(recipe)
            st.caption(f"recipe {short_id(content_id(recipe))}", width="content")
    if not recipe.layers:
        _status.show_base()
        _ui.empty("No layer is picked, so the model answers as the base.", "Pick the best layers", "edit-pick",
                  pick_best)  # fmt: skip
    elif (why := profile.cannot_score()) is not None:
        _ui.missing(why)
    else:
        with _ui.card("Live probe: do gold solutions become more likely?"):
            live_probe(recipe)
        with _ui.card("Dose and response: the probe at every master alpha"):
            _dose.draw(recipe)
    with _ui.card("Base and edited text, side by side"):
        held = _compare.draw(recipe)
    _session.link(recipe=to_link(recipe), run=held.run_id, job=held.job.job_id if held.active else None)


_session.run_page(main)
