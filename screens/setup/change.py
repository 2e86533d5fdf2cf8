"""Setup: change the profile's model, revision, dtype and SAEs."""

from typing import get_args

import streamlit as st

from screens.shared import session
from stethoscope.profiles import Profile
from stethoscope.records import ModelRef, SaeRef, Site
from stethoscope.records.base import Dtype

FIELDS = ("model", "revision", "dtype", "location", "site", "width", "l0", "sae-revision")


def by_name(profile: Profile) -> None:
    """Draw the fields of the model and its SAEs; changes apply when the button is clicked, and nothing is loaded."""
    with st.expander("Use another model or other SAEs", key="change-form"):
        _fill(profile)
        known = profile.known_saes
        if len(known) > 1:
            st.selectbox(
                "Known SAEs for this model",
                range(len(known)),
                format_func=lambda i: known[i].label,
                key="change-known",
                on_change=lambda: _fill_saes(known[st.session_state["change-known"]]),
            )
        model, revision, dtype = st.columns([3, 1, 1])
        model.text_input("Model: path or hub id", key="change-model")
        revision.text_input("Revision", key="change-revision", placeholder="main")
        dtype.selectbox("Dtype", get_args(Dtype), key="change-dtype")
        location, site, width, l0, at = st.columns([3, 1.2, 0.8, 0.8, 1])
        location.text_input(
            "SAEs: sae_lens release, path or hub id", key="change-location", placeholder="none: no diagnosis"
        )
        site.selectbox("Site", get_args(Site), key="change-site")
        width.text_input("Width", key="change-width", placeholder="16k")
        l0.text_input("L0", key="change-l0", placeholder="small")
        at.text_input("Revision of the SAEs", key="change-sae-revision", placeholder="main")
        st.caption("Changing the model removes its task vectors.")
        typed = {field: st.session_state[f"change-{field}"].strip() or None for field in FIELDS}
        ready = typed["model"] is not None
        with st.container(horizontal=True):
            st.button("Use these", key="change-use", disabled=not ready, on_click=_use, args=(profile, typed))
            if session.is_changed():
                st.button("Reset to the profile", key="change-back", on_click=session.change_profile)


def _use(profile: Profile, typed: dict[str, str | None]) -> None:
    fields = {name: typed[name] for name in ("location", "site", "width", "l0")}
    model = {"id": typed["model"], "revision": typed["revision"], "dtype": typed["dtype"]}
    if typed["model"] == profile.model.id:
        model = profile.model.model_dump() | model  # with its declared roles
    saes = SaeRef.model_validate(fields | {"revision": typed["sae-revision"]}) if typed["location"] else None
    session.change_profile(ModelRef.model_validate(model), saes)


def _fill(profile: Profile) -> None:
    """Fill the fields with the profile's names if they are empty or belong to another profile."""
    shown = profile.model_dump_json(include={"name", "model", "saes"})
    if st.session_state.get("change-of") == shown and "change-model" in st.session_state:
        return
    st.session_state.update({"change-of": shown, "change-known": 0, "change-model": profile.model.id})
    st.session_state.update({"change-revision": profile.model.revision or "", "change-dtype": profile.model.dtype})
    _fill_saes(profile.saes or SaeRef(location=""))


def _fill_saes(ref: SaeRef) -> None:
    st.session_state.update({"change-location": ref.location, "change-site": ref.site, "change-width": ref.width or ""})
    st.session_state.update({"change-l0": ref.l0 or "", "change-sae-revision": ref.revision or ""})
