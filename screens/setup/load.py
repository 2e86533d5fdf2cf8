"""Setup: device, loading and unloading. Nothing is downloaded before the button is clicked."""

import streamlit as st

from screens.shared import jobs, session, ui, watch
from stethoscope.profiles import Profile
from stethoscope.records import InfoSpec

DEVICES = ("auto", "cpu", "cuda", "cuda:1", "spread", "offload", "offload-disk")


def card(profile: Profile) -> jobs.View:
    """Draw the device and the loading state; return the view of the loaded model."""
    spec = InfoSpec(model=profile.model, saes=profile.saes, task_vectors=profile.task_vectors)
    with ui.card("Load", key="load-card"):
        front = jobs.front()
        st.session_state["device"] = front.device
        devices = DEVICES if front.device in DEVICES else (front.device, *DEVICES)
        st.selectbox(
            "Device",
            devices,
            key="device",
            on_change=_move,
            width=280,
            help=(
                "auto: CUDA if available, otherwise the CPU. spread: layers are distributed over all GPUs, then "
                "memory, then disk. offload: weights stay in memory (offload-disk: in the checkpoint's files) and "
                "are moved to the device when needed; this is slow, and gradients and exports are not available. The "
                "device is shared by all visitors; changing it unloads the model."
            ),
        )
        if st.session_state.get("unloaded"):
            ui.empty(f"{profile.title} is unloaded.", "Load the model", "load-model", _load)
            return jobs.View()
        view = jobs.ask("info", spec, title=f"Loading {profile.title}")
        watch.standing(view, "info", "Load the model")
        if view.result is not None and not view.stale:
            st.button("Unload the model", key="unload-model", on_click=_unload)
    return view


def _load() -> None:
    st.session_state.pop("unloaded", None)
    session.ask_to_load()
    jobs.forget("info")


def _unload() -> None:
    st.session_state["unloaded"] = True
    st.session_state.pop("load_asked", None)
    jobs.front().unload()
    jobs.forget("info")


def _move() -> None:
    jobs.front().unload(device=st.session_state["device"])
    for slot in ("info", "memory"):
        jobs.forget(slot)
