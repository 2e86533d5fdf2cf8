"""Features page: latents of a layer by effect and density, q values, and the tokens on which they fire."""

import streamlit as st

from screens.features import latent_table
from screens.shared import jobs, loaded_model, mirror, session, status, ui, watch
from screens.shared.fragment import fragment
from stethoscope.figures import latents
from stethoscope.formatting import percent, pretty
from stethoscope.records import LatentsSpec
from stethoscope.results import DiagnosisResult, LatentsResult

LEVELS = (0.01, 0.05, 0.10, 0.20)


def first_layer(layers: tuple[int, ...]) -> int:
    """Return the initial one of `layers`: a picked one, the best of an available diagnosis, or the first."""
    diagnosis = jobs.look("diagnosis").result
    order = diagnosis.order.get(st.session_state["subject"], ()) if isinstance(diagnosis, DiagnosisResult) else ()
    return next((layer for layer in (*st.session_state["layers"], *order) if layer in layers), layers[0])


def spec_from_controls(layers: tuple[int, ...]) -> LatentsSpec:
    """Draw the controls and return the latents spec; `layers` are those with an SAE."""
    profile, chosen = session.profile(), st.session_state
    first, second, third, fourth = st.columns([2, 1.2, 2, 1.4])
    first.selectbox(
        "Subject", profile.problems.subjects, format_func=pretty, **mirror.mirror("subject", "feature-subject")
    )
    if chosen["feature_layer"] not in layers:
        chosen["feature_layer"] = first_layer(layers)
    second.selectbox("Layer", layers, help="Layers with an SAE", **mirror.mirror("feature_layer", "feature-layer"))
    third.selectbox(
        "Control corpus",
        profile.problems.control_names,
        format_func=pretty,
        **mirror.mirror("control", "feature-control"),
    )
    fourth.selectbox(
        "False discovery rate",
        LEVELS,
        format_func=lambda level: percent(level, 0),
        help="A latent passes if its q value is at most this value.",
        **mirror.mirror("fdr", "feature-fdr"),
    )
    diagnosis = session.diagnosis()
    return LatentsSpec(diagnosis=diagnosis, subject=chosen["subject"], layer=chosen["feature_layer"])


def take_click() -> None:
    """Show the examples of the clicked dot."""
    event = st.session_state.get(f"latents-figure-{st.session_state['latent_picks']}")
    if (latent := latents.latent_from_selection(event)) is not None:
        latent_table.choose(latent)


def keep_latent(result: LatentsResult) -> None:
    """Start with the first selected latent of the layer; keep the latent if subject or control changes."""
    if st.session_state.get("latent_layer") != result.layer or not 0 <= st.session_state["latent"] < result.d_sae:
        first = next((row for row in result.rows if row.selected), result.rows[0])
        st.session_state.update(latent=first.latent, latent_layer=result.layer)


@fragment()
def explorer(result: LatentsResult, spec: LatentsSpec | None) -> None:
    """Draw figure, table and, if `result` belongs to `spec`, examples."""
    with ui.guarded():
        if not result.rows:
            st.info(f"No latent of layer {result.layer} fires in enough documents to count as live.")
            return
        keep_latent(result)
        level, picks = float(st.session_state["fdr"]), st.session_state["latent_picks"]
        with ui.card(f"Layer {result.layer}: effect against density"):
            ui.chart(
                latents.effect_against_density(result, level, st.session_state["latent"]),
                key="latents-chart",
                caption=latents.caption(result, level),
                rows=result.rows,
                note="Click a dot or a row, or type a latent's number, to see where it fires.",
                figure_key=f"latents-figure-{picks}",
                on_select=take_click,
                selection_mode=("points",),
            )
        latent_table.table(result, level)
        if spec is not None:
            latent_table.examples(result, spec)


def main() -> None:
    """Draw the page."""
    for name, value in {
        "feature_layer": None,
        "fdr": 0.05,
        "latent": 0,
        "latent_picks": 0,
        "latent_search": "",
    }.items():
        st.session_state.setdefault(name, value)
    ui.heading("Features", "See which latents fire more on a subject. Each dot is a latent of one layer's SAE.")
    if (why := session.profile().cannot_listen()) is not None:
        ui.missing(why)
        session.link()
        return
    if (info := loaded_model.info()) is None:
        loaded_model.wait_for_model()
        session.link()
        return
    spec = spec_from_controls(tuple(sorted({row.layer for row in info.saes})))
    view = jobs.ask("latents", spec, title=f"Latents of layer {spec.layer}")
    status.show_base()
    status.recorded(view)
    watch.standing(view, "latents", "Measure again", stopped="The measurement was stopped.")
    if isinstance(view.result, LatentsResult) and not view.error:
        explorer(view.result, None if view.stale else spec)
    session.link()


main()
