"""The session: the profile, plain keys with defaults, and widgets that mirror them.

Keyed widgets lose their value when the page changes, so each is a mirror: its value is copied into a plain session
key (`alpha`, `layers`, ...), which every page reads. Only strings, numbers and lists go into the session.
"""

from collections.abc import Callable, Sequence
from typing import Any

import streamlit as st
from streamlit.runtime.pages_manager import PagesManager

from stethoscope.errors import UserError
from stethoscope.profiles import MINI, Profile, load_profile

SCORES = ("mean_rate_difference", "specific_share", "log_ratio")
ENERGY_K = (4, 8, 16, 32, 64)
ARMS = {"raw": "raw", "projected": "projected", "projected-norm-matched": "norm-matched"}


def run_page(main: Callable[[], None]) -> None:
    """Run `main`, inside app.py.

    Until app.py has called `st.navigation` once in this process, Streamlit takes the folder pages/ for an app of the
    old kind, and an address such as /edit runs that file alone; then this starts over with app.py.
    """
    if not st.session_state.get("inside_app"):
        PagesManager.uses_pages_directory = False
        st.rerun()
    main()


def profile() -> Profile:
    """Return the session's profile; a broken one falls back to the mini (Setup shows the error)."""
    try:
        return load_profile(st.session_state.get("profile", MINI.name))
    except UserError:
        return MINI


def defaults() -> None:
    """Give every plain session key a value that suits the profile."""
    chosen = profile()
    allowed: dict[str, Sequence[str]] = {
        "task_vector": [ref.name for ref in chosen.task_vectors],
        "subject": chosen.problems.subjects,
        "control": chosen.problems.control_names,
        "score": SCORES,
        "arm": list(ARMS),
    }
    for name, values in allowed.items():
        if st.session_state.get(name) not in values:
            st.session_state[name] = values[0]
    starts = {"profile": MINI.name, "top_k": chosen.top_k, "top_n": chosen.top_n, "alpha": 1.0, "edit_k": chosen.top_k}
    for name, value in (starts | {"layers": [], "layer_alpha": {}, "slots": {}}).items():
        st.session_state.setdefault(name, value)


def mirror(name: str, key: str) -> dict[str, Any]:
    """Return the keyword arguments that tie the widget `key` to the plain session key `name`."""
    st.session_state[key] = st.session_state[name]
    return {"key": key, "on_change": _copy, "args": (name, key)}


def _copy(name: str, key: str) -> None:
    value = st.session_state[key]
    if value is not None:
        st.session_state[name] = sorted(value) if name == "layers" else value


def link(**ids: str | None) -> None:
    """Put `ids` into the address, so that a reload or a shared link shows this view again."""
    wanted = {name: value for name, value in ids.items() if value}
    if dict(st.query_params.to_dict()) != wanted:
        st.query_params.from_dict(wanted)
