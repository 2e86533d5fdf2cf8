"""Edit: what if I inject here? The recipe, the live probe, and base and edited text side by side."""

import streamlit as st

from pages import _compare, _jobs, _recipe, _session, _status, _ui, _watch
from stethoscope.figures import probe
from stethoscope.figures.theme import pretty
from stethoscope.records import EditRecipe, ProbeSpec
from stethoscope.results import DiagnosisResult, ProbeResult


def controls(n_layers: int) -> None:
    """Draw what decides the recipe: layers, master alpha, arm, task vector, and each layer's own strength."""
    chosen, profile = st.session_state, _session.profile()
    _session.layer_pills("Layers", n_layers, "edit-layer-pills")
    left, middle, right = st.columns([2.2, 2, 1.2])
    left.slider("Master alpha: 0 is the base, 1 the full task vector", 0.0, 1.5, step=0.05,
                **_session.mirror("alpha", "master-alpha"))  # fmt: skip
    middle.segmented_control(
        "Arm",
        list(_session.ARMS),
        format_func=lambda arm: _session.ARMS[arm],
        required=True,
        **_session.mirror("arm", "arm-choice"),
    )
    right.selectbox(
        "Task vector", [ref.name for ref in profile.task_vectors], **_session.mirror("task_vector", "edit-tau")
    )
    if chosen["arm"] != "raw":
        one, two = st.columns([2, 1])
        one.selectbox("Span of the latents of", profile.problems.subjects, format_func=pretty,
                      **_session.mirror("subject", "edit-subject"))  # fmt: skip
        two.number_input("Latents k", 1, 512, step=1, **_session.mirror("edit_k", "edit-k"))
    if chosen["layers"]:
        with st.expander("Strength of each layer (times master alpha)"):
            _recipe.layer_strengths(chosen["layers"])


def formula(recipe: EditRecipe, recipe_id: str) -> None:
    """Say the edit in words and symbols, and offer the recipe as JSON."""
    st.latex(_recipe.symbols(recipe))
    st.caption(_ui.escape(_recipe.words(recipe)))
    with st.container(horizontal=True, vertical_alignment="center"):
        st.download_button("Recipe JSON", recipe.model_dump_json(indent=2), "recipe.json", "application/json",
                           key="recipe-json", on_click="ignore")  # fmt: skip
        st.caption(f"recipe {recipe_id.removeprefix('sha256-')[:8]}", width="content")


def live_probe(recipe: EditRecipe) -> None:
    """Ask for the probe of `recipe` by itself and draw the newest answer; the former one stays until then."""
    spec = ProbeSpec(recipe=recipe, problems=_session.profile().problems)
    view = _jobs.ask("probe", spec, title="Probe")

    @st.fragment(run_every=0.3 if view.active else None)
    def line() -> None:
        job = _jobs.front().snapshot(view.job.job_id) if view.active else view.job
        if view.active and (job is None or job.state in _jobs.FINISHED):
            st.rerun()
        st.caption(_ui.escape(f"Updating: {_watch.describe(job)}") if view.active else "Up to date with the controls.")

    if view.error:
        _ui.banner(view.error)
        st.button("Try again", key="probe-again", on_click=_jobs.forget, args=("probe",))
    elif view.stopped:
        st.caption("Stopped.")
        st.button("Probe again", key="probe-again", on_click=_jobs.forget, args=("probe",))
    else:
        line()
    if isinstance(view.result, ProbeResult):
        _ui.chart(probe.differences(view.result), key="probe", caption=probe.caption(view.result))
        _ui.csv_button("CSV", view.result.rows, "probe.csv", "probe-csv")
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
    with _ui.card("Recipe"):
        controls(n_layers)
        recipe = _recipe.from_session(profile)
        recipe_id = _jobs.front().store.put_recipe(recipe)
        formula(recipe, recipe_id)
    if not recipe.layers:
        _status.show_base()
        _ui.empty("No layer is picked, so the model answers as the base.", "Pick the best layers", "edit-pick",
                  pick_best)  # fmt: skip
    else:
        with _ui.card("Live probe: do gold solutions become more likely?"):
            live_probe(recipe)
    with _ui.card("Base and edited text, side by side"):
        held = _compare.draw(recipe)
    _session.link(recipe=recipe_id, run=held.run_id, job=held.job.job_id if held.active else None)


_session.run_page(main)
