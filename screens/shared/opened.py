"""Settings of an opened run without controls on the pages: seed, number of documents, split."""

from collections.abc import Callable
from typing import Any

import streamlit as st

from stethoscope.records import Record, Spec
from stethoscope.use_cases import use_case_of

KEY = "opened_settings"
CONTROLS = {"control", "score", "top_k", "subject", "fold_gains", "out", "kind"}  # fields set by the pages' controls


def settings(kind: str) -> dict[str, Any]:
    """Return the settings of the opened run of `kind` that differ from the profile's, by field."""
    return st.session_state.get(KEY, {}).get(kind, {})


def keep(spec: Spec, build: Callable[[], Spec]) -> None:
    """Store the differences between `spec` and the page's default, so that `build`, which reads them, returns `spec`.

    Only plain values are stored; model, SAEs and problems come from the profile.
    """
    drop(kind := use_case_of(spec).kind)
    asked = build()
    names = {name for name in type(spec).model_fields if getattr(spec, name) != getattr(asked, name)} - CONTROLS
    plain = {name for name in names if not isinstance(getattr(spec, name), Record)}
    found = spec.model_dump(mode="json", include=plain)
    st.session_state[KEY] = st.session_state.get(KEY, {}) | ({kind: found} if found else {})


def drop(kind: str) -> None:
    """Restore the profile's settings."""
    held = st.session_state.get(KEY, {})
    st.session_state[KEY] = {name: fields for name, fields in held.items() if name != kind}
