"""What pages share: session keys, the profile, error banners, charts and downloads.

Keyed widgets lose their value when the page changes, so each is a mirror: its value is copied into a plain session
key (`alpha`, `layers`, ...), which every page reads. Only strings, numbers and lists go into the session.
"""

import html
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import plotly.graph_objects as go
import streamlit as st

from stethoscope.errors import StethoscopeError, UserError
from stethoscope.figures.tables import to_csv
from stethoscope.profiles import MINI, Profile, load_profile
from stethoscope.records import Record

SCORES = ("mean_rate_difference", "specific_share", "log_ratio")
ENERGY_K = (4, 8, 16, 32, 64)
PLOT_CONFIG = {"displaylogo": False, "modeBarButtonsToRemove": ["lasso2d", "autoScale2d", "zoomIn2d", "zoomOut2d"]}
STYLE = """<style>
.block-container, [data-testid="stMainBlockContainer"] {padding-top: 4.1rem; max-width: 1280px}
.st-key-status {border-bottom: 1px solid rgba(125,136,148,.25); padding-bottom: .55rem}
.st-key-status p {margin: 0}
[data-testid="stCaptionContainer"] p {line-height: 1.45}
</style>"""


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
        "arm": ("raw", "projected", "projected-norm-matched"),
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


def heading(title: str, question: str) -> None:
    """Draw the page's title and the question that it answers."""
    st.title(title, anchor=False)
    st.caption(question)


def card(title: str, key: str | None = None) -> Any:
    """Return a thin-bordered container with a heading."""
    box = st.container(border=True, key=key)
    box.markdown(f"##### {title}")
    return box


def chart(figure: go.Figure, *, key: str, caption: str) -> None:
    """Draw `figure` with its caption, which is its text alternative, too."""
    with st.container(key=key):
        st.plotly_chart(figure, key=f"{key}-figure", config=PLOT_CONFIG, alt=caption)
        st.caption(escape(caption))


def escape(text: str) -> str:
    """Return `text` with markdown's special characters made literal."""
    return "".join(f"\\{letter}" if letter in "\\`*_[]$<>~#|" else letter for letter in text)


def csv_button(label: str, rows: Sequence[Record], file_name: str, key: str) -> None:
    """Offer `rows` as a CSV file."""
    st.download_button(label, to_csv(rows), file_name, "text/csv", key=key, on_click="ignore")


def banner(error: object) -> None:
    """Show what went wrong, what was got, what was expected, the next step, and copyable detail."""
    what = str(getattr(error, "what", None) or error)
    lines = [f"**{escape(what)}**"]
    for label, name in (("Got", "got"), ("Expected", "expected"), ("Next step", "next_step")):
        if value := getattr(error, name, None):
            lines.append(f"{label}: {escape(str(value))}")
    st.error("  \n".join(lines))
    detail = getattr(error, "detail", None)
    with st.expander("Details to copy"):
        st.code(str(detail or error), language=None)


def empty(text: str, button: str, key: str, action: Callable[[], None]) -> None:
    """Draw an empty state: what is missing, and one button that mends it."""
    with st.container(border=True):
        st.caption(text)
        st.button(button, key=key, type="primary", on_click=action)


@contextmanager
def guarded() -> Iterator[None]:
    """Turn an exception of a page into a banner; the app goes on."""
    try:
        yield
    except StethoscopeError as error:
        banner(error)
    except Exception as error:  # noqa: BLE001 -- the page's last line of defence: a banner, never a traceback
        fault = UserError("This page stumbled; the mistake is ours", next_step="Reload, and report the details below.")
        fault.detail = html.unescape(traceback.format_exc())  # type: ignore[attr-defined]
        banner(fault)
