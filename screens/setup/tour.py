"""First-run tour on Setup: diagnose, edit, benchmark. Once dismissed, it stays hidden in later sessions.

It can be shown again. A file next to the runs records the dismissal, because the store contains only runs and recipes.
"""

import contextlib

import streamlit as st

from screens.shared import jobs, ui

MARK = "tour-dismissed"

STEPS = (
    (
        "1 · Diagnose",
        "Diagnose",
        "Find the layers that are specific to a skill. Pick some on the heatmap, and freeze the pick.",
    ),
    ("2 · Edit", "Edit", "Inject the raw task vector into the picked layers. A likelihood check follows every change."),
    (
        "3 · Benchmark",
        "Benchmark",
        "Compare the edit with the base and with controls on the same problems, with intervals and verdicts.",
    ),
)


def show() -> None:
    """Draw the three steps until they are dismissed."""
    if _dismissed():
        return
    with st.container(border=True, key="tour"):
        for column, (step, page, what) in zip(st.columns(3), STEPS, strict=True):
            column.markdown(f"**{step}**")
            column.caption(what)
            column.page_link(ui.path_of(page.lower()), label=f"{page} →")
        st.button("Got it, don't show this again", key="tour-dismiss", on_click=_dismiss)


def bring_back() -> None:
    """Draw the button that shows the steps again if they were dismissed."""
    if _dismissed():
        st.button("Show the three steps again", key="tour-back", type="tertiary", on_click=_restore)


def _dismissed() -> bool:
    return bool(st.session_state.get("tour-done")) or (jobs.front().store.root / MARK).exists()


def _dismiss() -> None:
    st.session_state["tour-done"] = True
    with contextlib.suppress(OSError):  # a read-only folder is reported where runs are stored
        (jobs.front().store.root / MARK).touch()


def _restore() -> None:
    st.session_state["tour-done"] = False
    with contextlib.suppress(OSError):
        (jobs.front().store.root / MARK).unlink(missing_ok=True)
