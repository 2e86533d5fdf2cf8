"""Edit page: the recipe, the likelihood check, and base and edited text side by side."""

import streamlit as st

from screens.edit import compare, controls, dose, history, share, strengths
from screens.shared import edit_recipe, jobs, loaded_model, session, status, ui, watch
from screens.shared.fragment import fragment
from stethoscope.figures import probe
from stethoscope.recipes.files import to_link
from stethoscope.records import EditRecipe, ProbeSpec
from stethoscope.results import DiagnosisResult, ProbeResult
from stethoscope.store.ids import content_id, short_id


def formula(recipe: EditRecipe) -> None:
    """Draw the edit as text and formula."""
    st.latex(edit_recipe.symbols(recipe))
    st.caption(ui.escape(f"{edit_recipe.words(recipe)} {edit_recipe.line(recipe)}".strip()))


def live_probe(recipe: EditRecipe) -> None:
    """Run the likelihood check of `recipe` automatically and draw the newest result; the previous one is shown until
    then."""
    spec = ProbeSpec(recipe=recipe, problems=session.profile().problems)
    view = jobs.ask("probe", spec, title="Probe")

    under_way = view.active_id

    @fragment(run_every=0.15 if under_way else None)
    def line() -> None:
        job = jobs.front().snapshot(under_way) if under_way else None
        jobs.draw_again(under_way is not None and jobs.ended(under_way))
        st.caption("Up to date" if job is None else ui.escape(f"Updating: {watch.describe(job)}"))

    if view.error:
        ui.banner(view.error)
        st.button("Try again", key="probe-again", on_click=jobs.forget, args=("probe",))
    elif view.stopped:
        st.caption("Stopped.")
        st.button("Run the check again", key="probe-again", on_click=jobs.forget, args=("probe",))
    else:
        line()
    if isinstance(view.result, ProbeResult):
        figure, note = probe.differences(view.result), probe.caption(view.result)
        ui.chart(figure, key="probe", caption=note, rows=view.result.rows)
        if not view.stale:
            status.show_certificate(view.result.certificate, recipe)


def offer_layers() -> None:
    """Draw a note that no layer is picked, with a button for the best layers of the current diagnosis, or for
    Diagnose."""
    result = jobs.look("diagnosis").result
    said = "No layers picked, so the model answers like the base."
    order = result.order.get(st.session_state["subject"], ()) if isinstance(result, DiagnosisResult) else ()
    if not (best := order[: int(st.session_state["top_n"])]):
        if ui.empty(said, "Diagnose first", "edit-pick"):
            ui.open_screen("diagnose")
        return
    ui.empty(said, f"Pick the best {len(best)} layers", "edit-pick", lambda: session.set_layers(best))


def main() -> None:
    """Draw the page."""
    ui.heading(
        "Edit",
        "Inject the task vector into the picked layers and see the effect. The model is edited only while a job runs.",
    )
    profile = session.profile()
    n_layers = loaded_model.known_layers()
    if n_layers is None:
        loaded_model.wait_for_model()
        return
    if not loaded_model.has_task_vector("an edit", "edit"):
        return
    with ui.card("Recipe"):
        controls.draw(n_layers)
        recipe = edit_recipe.from_session(profile)
        strengths.draw(recipe, n_layers)
        formula(recipe)
        history.remember(recipe)
        with st.container(horizontal=True, vertical_alignment="center", key="recipe-row"):
            history.buttons()
            share.draw(recipe)
            st.caption(f"recipe {short_id(content_id(recipe))}", width="content")
            ui.link_to("benchmark", "Benchmark this recipe", disabled=not recipe.layers)
    if not recipe.layers:
        status.show_base()
        offer_layers()
    elif (why := profile.cannot_score()) is not None:
        ui.missing(why)
    else:
        with ui.card("Likelihood check: do gold solutions become more likely?"):
            live_probe(recipe)
        with ui.card("Dose-response curve: the likelihood check at every master alpha"):
            dose.draw(recipe)
    with ui.card("Base and edited text, side by side"):
        held = compare.draw(recipe)
    session.link(recipe=to_link(recipe), run=held.run_id, job=held.active_id)


main()
