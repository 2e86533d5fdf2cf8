"""Setup: what am I listening to? Profile, task vector, SAEs, memory, and how far the task vector moves each layer."""

import pandas as pd
import streamlit as st

from pages import _jobs, _memory, _preflight, _session, _status, _tour, _ui, _watch
from stethoscope.errors import UserError
from stethoscope.figures import sizes
from stethoscope.profiles import PROFILES, load_profile
from stethoscope.records import InfoSpec
from stethoscope.results import InfoResult

OWN = "your own (TOML file)"


def choose_profile() -> None:
    """Draw the profile and task vector pickers; a broken profile shows its four parts and changes nothing."""
    current = st.session_state["profile"]
    options = [*PROFILES, OWN]
    st.session_state.setdefault("profile-choice", current if current in PROFILES else OWN)
    left, right = st.columns(2)
    choice = left.selectbox("Profile", options, key="profile-choice", help="Model, SAEs, task vectors and problems.")
    wanted = choice
    if choice == OWN:
        wanted = left.text_input("Path of the TOML file", key="profile-path", placeholder="my_model.toml").strip()
    right.selectbox(
        "Task vector",
        [ref.name for ref in _session.profile().task_vectors],
        **_session.mirror("task_vector", "task-vector"),
    )
    if wanted and wanted != current:
        try:
            load_profile(wanted)
        except UserError as error:
            _ui.banner(error)
            return
        for name in ("layers", "layer_alpha", "slots", "on_show", "top_k", "edit_k", "bench_subjects"):
            st.session_state.pop(name, None)
        st.session_state["profile"] = wanted
        st.rerun()


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
    if row is not None:
        with _ui.card(f"Relative size of the task vector {row.name}, by layer"):
            picked = st.session_state["layers"]
            figure = sizes.relative_norms(row, picked)
            rows = [{"layer": layer, "relative_norm": norm} for layer, norm in enumerate(row.relative_norm_by_layer)]
            _ui.chart(figure, key="norms", caption=sizes.caption(row, picked), rows=rows)
        _preflight.report(_session.profile())
    with _ui.card("Sparse autoencoders"):
        table = pd.DataFrame([sae.model_dump() for sae in info.saes])
        names = {"layer": "layer", "site": "site", "d_sae": "latents", "architecture": "architecture"}
        st.dataframe(table.rename(columns=names), hide_index=True, key="sae-table", alt="SAEs by layer")
    with _ui.card("Identity"):
        st.caption("Checksum over all weights as loaded; every later check compares with it.")
        st.code(f"{model.id}  {model.revision or ''}\n{model.checksum}", language=None)


def main() -> None:
    """Draw the page."""
    _ui.heading("Setup", "What am I listening to? A profile bundles a model, its SAEs, task vectors and problems.")
    _status.show_base()
    _tour.show()
    with _ui.card("Profile"):
        choose_profile()
        profile = _session.profile()
        _preflight.add_own(profile)
    spec = InfoSpec(model=profile.model, saes=profile.saes, task_vectors=profile.task_vectors)
    shipped = profile.model.id.startswith("embedded:")
    if shipped or st.session_state.get("load-asked") == profile.name:
        view = _jobs.ask("info", spec, title=f"Loading {profile.title}")
    else:
        view = _jobs.View()

    def load() -> None:
        st.session_state["load-asked"] = profile.name
        _jobs.forget("info")

    if view.error:
        _ui.banner(view.error)
        st.button("Try again", key="load-again", on_click=load)
    elif view.active:
        _watch.watch(view, key="info")
    elif view.result is None:
        _ui.empty(f"{profile.title} is not loaded yet.", "Load the model", "load-model", load)
    _memory.card(profile, shipped=shipped)
    if isinstance(view.result, InfoResult) and not view.stale:
        draw_info(view.result)
    _session.link()


_session.run_page(main)
