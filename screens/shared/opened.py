"""Settings of an opened run that the pages have no controls for: its seed, its number of documents, its split."""

from collections.abc import Callable
from typing import Any

import streamlit as st

from stethoscope.records import Record, Spec
from stethoscope.use_cases import use_case_of

KEY = "opened_settings"
CONTROLS = {"control", "score", "top_k", "subject", "fold_gains", "out", "kind"}  # fields that the pages' controls set


def settings(kind: str) -> dict[str, Any]:
    """Return the settings of the opened run of `kind` that differ from the profile's, by field."""
    return st.session_state.get(KEY, {}).get(kind, {})


def keep(spec: Spec, build: Callable[[], Spec]) -> None:
    """Keep what of `spec` differs from what the page asks by itself, so that `build`, which reads it, returns `spec`.

    Only plain values are kept: another model, other SAEs or problems are the profile's.
    """
    drop(kind := use_case_of(spec).kind)
    asked = build()
    names = {name for name in type(spec).model_fields if getattr(spec, name) != getattr(asked, name)} - CONTROLS
    plain = {name for name in names if not isinstance(getattr(spec, name), Record)}
    found = spec.model_dump(mode="json", include=plain)
    st.session_state[KEY] = st.session_state.get(KEY, {}) | ({kind: found} if found else {})


def drop(kind: str) -> None:
    """Go back to the profile's own settings."""
    held = st.session_state.get(KEY, {})
    st.session_state[KEY] = {name: fields for name, fields in held.items() if name != kind}
