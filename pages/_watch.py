"""A running job on the page: stage, finished items, rate, time left, and Stop."""

from collections.abc import Callable
from typing import Any

import streamlit as st

from pages import _jobs, _ui


def describe(job: Any) -> str:
    """Return title, stage, finished items, rate and ETA of `job` in one line."""
    if job.state == "queued":
        return f"{job.title} · queued"
    parts = [job.title, job.stage or "starting"]
    parts += [f"{job.done} of {job.total}"] if job.total else []
    parts += [f"{job.rate:.1f} per s"] if job.rate else []
    parts += [f"about {job.eta_s:.0f} s left"] if job.eta_s is not None else []
    return " · ".join(parts)


def watch(view: _jobs.View, *, key: str, draw: Callable[[Any], None] | None = None, every: float = 0.5) -> None:
    """Draw the running job of `view` until it ends, then rerun the page; Stop stands outside the fragment."""
    job_id = view.job.job_id

    @st.fragment(run_every=every)
    def live() -> None:
        job = _jobs.front().snapshot(job_id)
        if job is None or job.state in _jobs.FINISHED:
            st.rerun()
        share = min(job.done / job.total, 1.0) if job.total else 0.0
        st.progress(share, text=_ui.escape(describe(job)))
        if draw is not None:
            draw(job)

    live()
    st.button("Stop", key=f"{key}-stop", on_click=_jobs.stop, args=(job_id,))
