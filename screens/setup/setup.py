"""Setup page: profile, task vector, SAEs, memory, and how much the task vector changes each layer."""

import pandas as pd
import streamlit as st

from screens.setup import change, downloads, load, memory, profile_choice, task_vectors, tour
from screens.shared import session, status, ui
from stethoscope.figures import sizes
from stethoscope.results import InfoResult


def draw_info(info: InfoResult) -> None:
    """Draw the numbers of the loaded model, the task vector's size by layer and the SAE table."""
    model = info.model
    facts = (
        ("Layers", str(model.n_layers), f"residual width {model.d_model}"),
        ("Parameters", f"{model.parameters / 1e6:.2f} M", model.dtype),
        ("Weights", f"{model.size_bytes / 1e6:.1f} MB", f"on {model.device}"),
        ("SAEs", f"{len(info.saes)} of {model.n_layers}", "layers with a dictionary"),
    )
    for column, (name, value, note) in zip(st.columns(4), facts, strict=True):
        column.metric(name, value, note, delta_color="off", delta_arrow="off", border=True)
    row = next((r for r in info.task_vectors if r.name == st.session_state["task_vector"]), None)
    if row is not None and row.unusable is None:
        with ui.card(f"Relative size of the task vector {row.name}, by layer"):
            picked = st.session_state["layers"]
            figure = sizes.relative_norms(row, picked)
            rows = [{"layer": layer, "relative_norm": norm} for layer, norm in enumerate(row.relative_norm_by_layer)]
            ui.chart(figure, key="norms", caption=sizes.caption(row, picked), rows=rows)
    if row is not None:
        task_vectors.report(session.profile())
    with ui.card("Sparse autoencoders"):
        if info.saes:
            table = pd.DataFrame([sae.model_dump() for sae in info.saes])
            names = {"d_sae": "latents", "model": "trained on"}
            ui.table(table.rename(columns=names), key="sae-table", alt="SAEs by layer")
        else:
            st.caption("This profile has no SAEs. Diagnose, Features and energy need SAEs.")
    with ui.card("Identity"):
        st.caption("Checksum of all weights at loading. All later checks compare with it.")
        st.code(f"{model.id}  {model.revision or ''}\n{model.checksum}", language=None, wrap_lines=True)


def main() -> None:
    """Draw the page."""
    ui.heading("Setup", "Choose what to work with. A profile bundles a model, its SAEs, task vectors and problems.")
    status.show_base()
    tour.show()
    with ui.card("Profile", key="profile-card"):
        profile_choice.choose()
        change.by_name(session.profile())
    profile = session.profile()
    with ui.card("Task vector", key="task-vector-card"):
        profile_choice.task_vector(profile)
        task_vectors.add_own(profile)
    downloads.card(profile)
    view = load.card(profile)
    memory.card(profile)
    if isinstance(view.result, InfoResult) and not view.stale:
        draw_info(view.result)
    tour.bring_back()
    session.link()


main()
