"""A running job on the page: stage, finished items, speed, time left, and Stop."""

from collections.abc import Callable

import streamlit as st

from screens.shared import jobs, session, ui
from screens.shared.fragment import fragment
from stethoscope.formatting import counted, duration_text, pace
from stethoscope.jobs.job import JobSnapshot
from stethoscope.records import Spec

BY_ITSELF_S = 30  # maximum duration of automatic work


def describe(job: JobSnapshot) -> str:
    """Return title, stage, finished items, rate and ETA of `job` in one line."""
    if job.state == "queued":
        return f"{job.title} · queued"
    parts = [job.title, job.stage or "starting", *([job.detail] if job.detail else [])]
    parts += [counted(job.done, job.total, job.unit)] if job.total else []
    parts += [pace(job.rate, job.unit)] if job.rate else []
    parts += [f"about {duration_text(job.eta_s)} left"] if job.eta_s is not None else []
    return " · ".join(parts)


def live(job_id: str, *, draw: Callable[[JobSnapshot], None] | None = None, every: float = 0.5) -> None:
    """Draw the running job and its notes until it ends, then rerun the page."""

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


def watch(view: jobs.View, *, key: str, draw: Callable[[JobSnapshot], None] | None = None, every: float = 0.5) -> None:
    """Draw the running job of `view` until it ends; Stop is outside the fragment."""
    if (job_id := view.active_id) is not None:
        live(job_id, draw=draw, every=every)
        st.button("Stop", key=f"{key}-stop", on_click=jobs.stop, args=(job_id,))


def unkept() -> None:
    """Draw why results on the page could not be stored, once for each reason."""
    held_jobs = [jobs.front().snapshot(held["job"]) for held in st.session_state["slots"].values() if held.get("job")]
    for error in dict.fromkeys(job.error for job in held_jobs if job is not None and job.result is not None):
        if error is not None:
            ui.banner(error)


def asked_for(slot: str, spec: Spec, said: str, button: str) -> bool:
    """Return whether the user requested `spec`; if not, draw an explanation and the button.

    A request made before "Load the model" is repeated afterwards, because missing files may now be available.
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


def by_itself(slot: str, spec: Spec, *, title: str, button: str, guess_s: float | None = None) -> jobs.View:
    """Return the view of `spec`, which starts automatically in the background if it is fast.

    If the newest run of its kind with this model took longer than `BY_ITSELF_S`, or nothing was measured, draw a button
    with the estimated time instead. `guess_s` is an estimate from other measurements if no run of its kind has
    finished.
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
    """Draw the state of `slot` without a result: error, progress, or stopped.

    `again` is the label of the button that restarts it after a stop; with `stopped`, this is an empty state of the
    whole page.
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
