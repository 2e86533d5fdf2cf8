"""A running job on the page: stage, finished items, rate, time left, and Stop."""

from collections.abc import Callable
from typing import Any

import streamlit as st

from screens.shared import jobs, session, ui
from screens.shared.fragment import fragment
from stethoscope.progress import counted, duration_text, pace

BY_ITSELF_S = 30  # the longest work that a page starts without being asked


def describe(job: Any) -> str:
    """Return title, stage, finished items, rate and ETA of `job` in one line."""
    if job.state == "queued":
        return f"{job.title} · queued"
    parts = [job.title, job.stage or "starting", *([job.detail] if job.detail else [])]
    parts += [counted(job.done, job.total, job.unit)] if job.total else []
    parts += [pace(job.rate, job.unit)] if job.rate else []
    parts += [f"about {duration_text(job.eta_s)} left"] if job.eta_s is not None else []
    return " · ".join(parts)


def live(job_id: str, *, draw: Callable[[Any], None] | None = None, every: float = 0.5) -> None:
    """Draw the running job and what it told people to know until it ends, then rerun the page."""

    @fragment(run_every=every)
    def progress() -> None:
        job = jobs.front().snapshot(job_id)
        jobs.draw_again(jobs.ended(job_id))
        if job is None:
            return
        share = min(job.done / job.total, 1.0) if job.total else 0.0
        st.progress(share, text=ui.escape(describe(job)))
        for note in job.notes:
            st.warning(ui.escape(note))
        if draw is not None:
            draw(job)

    progress()


def watch(view: jobs.View, *, key: str, draw: Callable[[Any], None] | None = None, every: float = 0.5) -> None:
    """Draw the running job of `view` until it ends; Stop stands outside the fragment."""
    live(view.job.job_id, draw=draw, every=every)
    st.button("Stop", key=f"{key}-stop", on_click=jobs.stop, args=(view.job.job_id,))


def unkept() -> None:
    """Draw why the store could not keep results that the page shows, once for each reason."""
    held_jobs = [jobs.front().snapshot(held["job"]) for held in st.session_state["slots"].values() if held.get("job")]
    for error in dict.fromkeys(job.error for job in held_jobs if job is not None and job.result is not None):
        if error is not None:
            ui.banner(error)


def asked_for(slot: str, spec: Any, said: str, button: str) -> bool:
    """Tell whether a person asked for `spec`; where not, draw what the asking does, and its button.

    What was asked before "Load the model" is asked for again after it: what was missing may be here now.
    """
    asked, kept = f"{jobs.spec_key(spec)} {session.may_load()}", f"{slot}-asked"
    if st.session_state.get(kept) == asked:
        return True

    def ask() -> None:
        st.session_state[kept] = asked
        jobs.forget(slot)

    st.caption(ui.escape(said))
    st.button(ui.escape(button), key=f"{slot}-ask", on_click=ask)
    return False


def by_itself(slot: str, spec: Any, *, title: str, button: str, guess_s: float | None = None) -> jobs.View:
    """Return the view of `spec`, which no person asked for: it starts by itself in the background where it is cheap.

    Above `BY_ITSELF_S`, by the newest run of its kind with this model, or where nothing was measured, a button says
    what it costs and asks for it. `guess_s` is what other measured work says where no run of its kind has finished.
    """
    if jobs.holds(slot, spec) or not session.may_load():
        return jobs.ask(slot, spec, title=title, interactive=False)
    cost_s = jobs.expected_s(spec)
    cost_s = guess_s if cost_s is None else cost_s
    if cost_s is not None and cost_s <= BY_ITSELF_S:
        return jobs.ask(slot, spec, title=title, interactive=False, background=True)
    jobs.leave(slot)
    known = "The duration with this model has not been measured yet."
    if cost_s is not None:
        known = f"This takes about {duration_text(cost_s)} with this model, as measured on this machine."
    if not asked_for(slot, spec, f"{known} Only tasks of at most {BY_ITSELF_S} s start automatically.", button):
        return jobs.View()
    return jobs.ask(slot, spec, title=title, interactive=False)


def standing(view: jobs.View, slot: str, again: str, *, stopped: str | None = None) -> None:
    """Draw how the question of `slot` stands where it has no answer: error, progress, or that it was stopped.

    `again` names the button that asks anew after a stop; with `stopped` that is an empty state of the whole page.
    """
    if view.unasked:
        title = session.profile().title
        said = f"{title} is not loaded. The Setup page shows the download size and whether it fits into memory."
        ui.empty(said, "Load the model", f"{slot}-load", session.ask_to_load)
    elif view.error:
        ui.banner(view.error)
        st.button("Try again", key=f"{slot}-again", on_click=jobs.forget, args=(slot,))
    elif view.active:
        watch(view, key=slot)
    elif view.stopped and stopped:
        ui.empty(stopped, again, f"{slot}-again", lambda: jobs.forget(slot))
    elif view.stopped:
        st.caption("Stopped.")
        st.button(again, key=f"{slot}-again", on_click=jobs.forget, args=(slot,))
