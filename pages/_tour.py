"""The first-run tour on Setup: listen, inject, judge. Once dismissed it stays away, in later sessions, too."""

import contextlib

import streamlit as st

from pages import _jobs

MARK = "tour-dismissed"  # an empty file beside the runs

STEPS = (
    ("1 · Listen", "Diagnose", "Which layers are specific to a skill? Pick some on the picture, and freeze the pick."),
    (
        "2 · Inject",
        "Edit",
        "The raw task vector goes into the picked layers; a probe answers every move.",
    ),
    ("3 · Judge", "Benchmark", "Paired problems, controls beside the edit, and a verdict with its interval."),
)


def show() -> None:
    """Draw the three steps until they are dismissed."""
    if st.session_state.get("tour-done") or (_jobs.front().store.root / MARK).exists():
        return
    with st.container(border=True, key="tour"):
        for column, (step, page, what) in zip(st.columns(3), STEPS, strict=True):
            column.markdown(f"**{step}**")
            column.caption(what)
            column.page_link(f"pages/{page.lower()}.py", label=page)
        st.button("Got it", key="tour-dismiss", type="tertiary", on_click=_dismiss)


def _dismiss() -> None:
    st.session_state["tour-done"] = True
    with contextlib.suppress(OSError):  # a folder that cannot be written is told where runs are stored
        (_jobs.front().store.root / MARK).touch()
