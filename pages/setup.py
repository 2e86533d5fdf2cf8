"""Setup: what am I listening to? Profile, task vector, SAEs, memory, and how far the task vector moves each layer."""

import pandas as pd
import streamlit as st

from pages import _change, _fetching, _load, _memory, _preflight, _profile, _session, _status, _tour, _ui
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
        with _ui.card(f"Relative size of the task vector {row.name}, by layer"):
            picked = st.session_state["layers"]
            figure = sizes.relative_norms(row, picked)
            rows = [{"layer": layer, "relative_norm": norm} for layer, norm in enumerate(row.relative_norm_by_layer)]
            _ui.chart(figure, key="norms", caption=sizes.caption(row, picked), rows=rows)
    if row is not None:
        _preflight.report(_session.profile())
    with _ui.card("Sparse autoencoders"):
        if info.saes:
            table = pd.DataFrame([sae.model_dump() for sae in info.saes])
            names = {"d_sae": "latents", "model": "trained on"}
            _ui.table(table.rename(columns=names), key="sae-table", alt="SAEs by layer")
        else:
            st.caption("None are named, so there is nothing to listen with: Diagnose, Features and energy need SAEs.")
    with _ui.card("Identity"):
        st.caption("Checksum over all weights as loaded; every later check compares with it.")
        st.code(f"{model.id}  {model.revision or ''}\n{model.checksum}", language=None, wrap_lines=True)


def main() -> None:
    """Draw the page."""
    _ui.heading("Setup", "What am I listening to? A profile bundles a model, its SAEs, task vectors and problems.")
    _status.show_base()
    _tour.show()
    with _ui.card("Profile", key="profile-card"):
        _profile.choose()
        _change.by_name(_session.profile())
    profile = _session.profile()
    with _ui.card("Task vector", key="task-vector-card"):
        _profile.task_vector(profile)
        _preflight.add_own(profile)
    _fetching.card(profile)
    view = _load.card(profile)
    _memory.card(profile)
    if isinstance(view.result, InfoResult) and not view.stale:
        draw_info(view.result)
    _tour.bring_back()
    _session.link()


_session.run_page(main)
