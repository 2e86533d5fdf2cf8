"""Slots of a page for jobs of the worker: submit, watch and show, without blocking.

When the spec of a slot changes, it withdraws from its former job and shows the former result (stale) until the new one
is available. A slot can also hold a stored run (recorded). The session stores only ids. Visitors with the same spec
share a job: stopping it only withdraws from it while others use it.
"""

from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any

import streamlit as st
from streamlit import runtime
from streamlit.runtime.scriptrunner import get_script_run_ctx

from screens.shared import mirror, session
from stethoscope import jobs
from stethoscope.errors import StethoscopeError
from stethoscope.jobs.job import ErrorInfo, JobSnapshot
from stethoscope.jobs.worker import JobFront
from stethoscope.locations import EMBEDDED_PREFIX
from stethoscope.records import ModelRef, Spec, nested_records
from stethoscope.results import ModelRow, Result
from stethoscope.store.runs import RunStore
from stethoscope.use_cases import use_case_of

STOPPED = ("paused", "cancelled")
FINISHED = ("done", *STOPPED, "failed")


@dataclass(frozen=True)
class View:
    """Content of a slot: a result (`stale`: of the former spec; `run_id` if it is stored), its job, and an error.

    `unasked`: nothing was submitted, because the user has not yet agreed to load the model.
    """

    result: Result | None = None
    run_id: str | None = None
    job: JobSnapshot | None = None
    error: ErrorInfo | str | None = None
    stale: bool = False
    recorded: bool = False
    unasked: bool = False

    @property
    def active(self) -> bool:
        """Whether the slot's job is queued or running."""
        return self.under_way is not None

    @property
    def under_way(self) -> JobSnapshot | None:
        """The slot's job while it is queued or running."""
        return None if self.job is None or self.job.state in FINISHED else self.job

    @property
    def active_id(self) -> str | None:
        """The id of the slot's job while it is queued or running."""
        return None if self.under_way is None else self.under_way.job_id

    @property
    def stopped(self) -> bool:
        """Whether the job was cancelled or paused before it had a result."""
        return self.job is not None and self.job.state in STOPPED and (self.result is None or self.stale)


def front() -> JobFront:
    """Return the job front of this process."""
    return jobs.front()


def loaded() -> ModelRow | None:
    """Return the row of the loaded model; None if it is not the profile's model, because visitors share one worker."""
    model, wanted = front().status().model, session.profile().model
    asked = None if model is None else (model.id, model.asked_revision, model.dtype)
    return model if asked == (wanted.id, wanted.revision, wanted.dtype) else None


def visitor() -> str:
    """Return the owner name of this browser session for jobs."""
    running = get_script_run_ctx(suppress_warning=True)
    return jobs.ANYBODY if running is None else running.session_id


def _gone(owner: str) -> bool:
    """Whether `owner` is no visitor, or a browser session that has ended (a reload starts a new one)."""
    return owner == jobs.ANYBODY or (runtime.exists() and not runtime.get_instance().is_active_session(owner))


def spec_key(spec: Spec) -> str:
    """Return a text that identifies a spec."""
    return f"{type(spec).__name__}:{spec.model_dump_json()}"


def holds(slot: str, spec: Spec) -> bool:
    """Whether `slot` holds `spec`: its job, or a stored run of it."""
    return st.session_state["slots"].get(slot, {}).get("spec") == spec_key(spec)


def ask(
    slot: str, spec: Spec, *, title: str, interactive: bool = True, background: bool = False, loads: bool = True
) -> View:
    """Return the view of `spec` in `slot`; submit it if the slot holds another spec.

    `background` is for automatic jobs (see `watch.by_itself`). A spec that `loads` a model waits for the user's
    agreement unless the model is included (see `session.may_load`).
    """
    held = st.session_state["slots"].get(slot, {})
    job = front().snapshot(held["job"]) if held.get("job") else None
    lost = bool(held.get("job")) and job is None
    overtaken = job is not None and job.state == "cancelled" and job.result is None and not held.get("stopped")
    if held.get("spec") != spec_key(spec) or lost or overtaken:
        if loads and not session.may_load():
            return View(unasked=True)
        if job is not None and held.get("spec") != spec_key(spec):
            front().cancel(job.job_id, visitor())
        job_id = front().submit(spec, interactive=interactive, background=background, title=title, owner=visitor())
        st.session_state["slots"][slot] = {"spec": spec_key(spec), "job": job_id, "shown": held.get("shown")}
    return look(slot)


def leave(slot: str) -> None:
    """Withdraw from the job of `slot`, and clear the slot."""
    if job_id := st.session_state["slots"].get(slot, {}).get("job"):
        front().cancel(job_id, visitor())
    forget(slot)


def expected_s(spec: Spec) -> float | None:
    """Return the seconds of the newest finished run of this kind with the same models; None if not measured.

    The included models are small: without measurements, they count as free.
    """
    models = [part for part in nested_records(spec) if isinstance(part, ModelRef)]
    for run in front().store.list_runs(use_case_of(spec).kind):
        with suppress(StethoscopeError):  # a damaged row
            of_run = [part for part in nested_records(run.spec) if isinstance(part, ModelRef)]
            if run.state == "done" and run.elapsed_s is not None and of_run == models:
                return run.elapsed_s
    return 0.0 if all(model.id.startswith(EMBEDDED_PREFIX) for model in models) else None


def begin(slot: str, spec: Spec, *, title: str, interactive: bool = False) -> None:
    """Start `spec` in `slot` after a click; batch jobs wait for interactive ones."""
    hold(slot, job=front().submit(spec, interactive=interactive, title=title, owner=visitor()))


def hold(slot: str, *, job: str | None = None, run: str | None = None, spec: Spec | None = None) -> None:
    """Show an existing job or stored run in `slot`; with `spec`, requesting that spec keeps it."""
    key = None if spec is None else spec_key(spec)
    if job is not None:
        front().follow(job, visitor())
    st.session_state["slots"][slot] = {"spec": key, "job": job, "run": run}


def awaited() -> set[str]:
    """Return the ids of the active jobs that the page or a later fragment has drawn."""
    return set(st.session_state.get("awaited", []))


def ended(job_id: str) -> bool:
    """Whether the job is no longer active."""
    job = front().snapshot(job_id)
    return job is None or not job.active


def draw_again(reason: bool) -> None:
    """Rerun the page from a fragment, for `reason`.

    Not while the whole page is being drawn: it would be interrupted, and repeated writes could undo user input. The
    fragment's next rerun finds the reason again.
    """
    if reason and not mirror.whole_page():
        st.rerun()


def show_begun() -> None:
    """Rerun the page if a fragment started a job, so that the page watches it."""
    draw_again(bool(awaited() - set(st.session_state.get("watched", []))))


def forget(slot: str) -> None:
    """Clear `slot`, so that the next `ask` starts again."""
    st.session_state["slots"].pop(slot, None)


def look(slot: str) -> View:
    """Return the view of `slot` without submitting anything."""
    held = st.session_state["slots"].get(slot, {})
    if held.get("job") is None:
        run_id = held.get("run")
        held["shown"] = {"run": run_id} if run_id else held.get("shown")
        return View(load_result(front().store, run_id), run_id, recorded=True) if run_id else View()
    job = front().snapshot(held["job"])
    if job is None:
        forget(slot)
        return View(error="The server was restarted and no longer knows this job. Finished blocks are stored.")
    if held.get("stopped") and job.active:  # it continues for another visitor
        job = replace(job, state="cancelled")
    if job.state in FINISHED and job.result is not None:
        held["shown"] = {"job": job.job_id}
        return View(job.result, job.run_id, job)
    view = View(_former(held), job=job, error=job.error, stale=True)
    if view.active:
        st.session_state["awaited"] = sorted({*awaited(), job.job_id})
    return view


def _former(held: dict[str, Any]) -> Result | None:
    """Result that the slot showed before its current job, if still available."""
    shown = held.get("shown") or {}
    if run_id := shown.get("run"):
        return load_result(front().store, run_id)
    job = front().snapshot(shown["job"]) if shown.get("job") else None
    return None if job is None else job.result


def load_result(store: RunStore, run_id: str) -> Result:
    """Return the run's result; a benchmark resumed after a pause has a new result."""
    return _load_once(store, run_id, store.get_run(run_id).result_id)


@lru_cache(maxsize=32)
def _load_once(store: RunStore, run_id: str, result_id: str | None) -> Result:
    return store.load_result(run_id)


def may_stop(job: JobSnapshot) -> bool:
    """Whether this visitor requested `job`, or no visitor who did is still connected."""
    return visitor() in job.owners or all(_gone(owner) for owner in job.owners)


def stop(job_id: str) -> None:
    """Withdraw from the job on user request; no slot restarts it automatically.

    Visitors who have closed the page also withdraw; the job continues only if another visitor still needs it.
    """
    _withdraw(job_id, front().cancel)


def pause(job_id: str) -> None:
    """Pause a benchmark, like `stop`; the same spec continues it later."""
    _withdraw(job_id, front().pause)


def _withdraw(job_id: str, leave: Callable[[str, str], None]) -> None:
    job = front().snapshot(job_id)
    for owner in () if job is None else job.owners:
        if owner == visitor() or _gone(owner):
            leave(job_id, owner)
    for held in st.session_state["slots"].values():
        if held.get("job") == job_id:
            held["stopped"] = True
