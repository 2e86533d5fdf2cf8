"""How a page asks the worker: one slot a question; submitted, watched, shown, and never waited for.

A slot whose spec changes withdraws from its former job and keeps showing the former result (stale) until the new one
is there. A slot can also hold a stored run (recorded). Only ids go into the session. Visitors who ask the same share a
job: one who stops it only leaves it, unless nobody else is there.
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
from stethoscope.locations import EMBEDDED_PREFIX
from stethoscope.records import ModelRef, nested_records
from stethoscope.use_cases import use_case_of

STOPPED = ("paused", "cancelled")
FINISHED = ("done", *STOPPED, "failed")


@dataclass(frozen=True)
class View:
    """What a slot shows: a result (`stale`: of the former spec; `run_id` where it is stored), its job, an error.

    `unasked`: nothing was asked, for the model is not to be loaded before a button says so.
    """

    result: Any = None
    run_id: str | None = None
    job: Any = None
    error: Any = None
    stale: bool = False
    recorded: bool = False
    unasked: bool = False

    @property
    def active(self) -> bool:
        """True while the slot's job is queued or running."""
        return self.job is not None and self.job.state not in FINISHED

    @property
    def stopped(self) -> bool:
        """True when the job was cancelled or paused before there was anything to show."""
        return self.job is not None and self.job.state in STOPPED and (self.result is None or self.stale)


def front() -> Any:
    """Return the one jobs front of this process."""
    return jobs.front()


def loaded() -> Any:
    """Return the row of the loaded model, None where that is not the profile's: visitors share one worker."""
    model, wanted = front().status().model, session.profile().model
    asked = None if model is None else (model.id, model.asked_revision, model.dtype)
    return model if asked == (wanted.id, wanted.revision, wanted.dtype) else None


def visitor() -> str:
    """Return the name under which this browser session asks for jobs."""
    running = get_script_run_ctx(suppress_warning=True)
    return jobs.ANYBODY if running is None else running.session_id


def _gone(owner: str) -> bool:
    """Whether `owner` is nobody, or a browser session that has ended (a reload begins a new one)."""
    return owner == jobs.ANYBODY or (runtime.exists() and not runtime.get_instance().is_active_session(owner))


def spec_key(spec: Any) -> str:
    """Return the text that tells two specs apart."""
    return f"{type(spec).__name__}:{spec.model_dump_json()}"


def holds(slot: str, spec: Any) -> bool:
    """Whether `slot` holds `spec`: its job, or a stored run of it."""
    return st.session_state["slots"].get(slot, {}).get("spec") == spec_key(spec)


def ask(
    slot: str, spec: Any, *, title: str, interactive: bool = True, background: bool = False, loads: bool = True
) -> View:
    """Return the view of `spec` in `slot`, submitting it when the slot holds another one.

    In the `background` is what no person asked for: see `watch.by_itself`.
    A spec that `loads` a model waits for the button where the model is not shipped (see `session.may_load`).
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
    """Withdraw from the job of `slot`, and empty it."""
    if job_id := st.session_state["slots"].get(slot, {}).get("job"):
        front().cancel(job_id, visitor())
    forget(slot)


def expected_s(spec: Any) -> float | None:
    """Return the seconds that the newest finished run of this kind took with the same models; None: not measured here.

    The shipped models are known to be small: unmeasured, they are taken to cost nothing.
    """
    models = [part for part in nested_records(spec) if isinstance(part, ModelRef)]
    for run in front().store.list_runs(use_case_of(spec).kind):
        with suppress(StethoscopeError):  # a damaged row
            of_run = [part for part in nested_records(run.spec) if isinstance(part, ModelRef)]
            if run.state == "done" and run.elapsed_s is not None and of_run == models:
                return run.elapsed_s
    return 0.0 if all(model.id.startswith(EMBEDDED_PREFIX) for model in models) else None


def begin(slot: str, spec: Any, *, title: str, interactive: bool = False) -> None:
    """Start `spec` in `slot` because a button said so; a batch job waits behind interactive ones."""
    hold(slot, job=front().submit(spec, interactive=interactive, title=title, owner=visitor()))


def hold(slot: str, *, job: str | None = None, run: str | None = None, spec: Any = None) -> None:
    """Show an existing job or stored run in `slot`; with `spec`, asking for that spec keeps it."""
    key = None if spec is None else spec_key(spec)
    if job is not None:
        front().follow(job, visitor())
    st.session_state["slots"][slot] = {"spec": key, "job": job, "run": run}


def awaited() -> set[str]:
    """Return the ids of the jobs that were under way when the page, or a fragment of it since, drew them."""
    return set(st.session_state.get("awaited", []))


def ended(job_id: str) -> bool:
    """Whether the job is no longer under way."""
    job = front().snapshot(job_id)
    return job is None or not job.active


def draw_again(reason: bool) -> None:
    """Draw the page once more from a fragment by itself, for `reason`.

    Never while the whole page is being drawn: it would be cut off, and what is written once more would undo what a
    person does meanwhile. The fragment's next turn finds the reason again.
    """
    if reason and not mirror.whole_page():
        st.rerun()


def show_begun() -> None:
    """Draw the page once more where a fragment by itself began a job, so that the page watches it."""
    draw_again(bool(awaited() - set(st.session_state.get("watched", []))))


def forget(slot: str) -> None:
    """Empty `slot`, so that the next `ask` starts again."""
    st.session_state["slots"].pop(slot, None)


def look(slot: str) -> View:
    """Return the view of whatever `slot` holds, asking for nothing new."""
    held = st.session_state["slots"].get(slot, {})
    if held.get("job") is None:
        run_id = held.get("run")
        held["shown"] = {"run": run_id} if run_id else held.get("shown")
        return View(load_result(front().store, run_id), run_id, recorded=True) if run_id else View()
    job = front().snapshot(held["job"])
    if job is None:
        forget(slot)
        return View(error="The server was restarted and no longer knows this job. Finished blocks are stored.")
    if held.get("stopped") and job.active:  # it goes on for another visitor
        job = replace(job, state="cancelled")
    if job.state in FINISHED and job.result is not None:
        held["shown"] = {"job": job.job_id}
        return View(job.result, job.run_id, job)
    view = View(_former(held), job=job, error=job.error, stale=True)
    if view.active:
        st.session_state["awaited"] = sorted({*awaited(), job.job_id})
    return view


def _former(held: dict[str, Any]) -> Any:
    """Result that the slot showed before its present job, if it can still be had."""
    shown = held.get("shown") or {}
    if run_id := shown.get("run"):
        return load_result(front().store, run_id)
    job = front().snapshot(shown["job"]) if shown.get("job") else None
    return None if job is None else job.result


def load_result(store: Any, run_id: str) -> Any:
    """Return the run's result; a benchmark that went on after a pause has another one than before."""
    return _load_once(store, run_id, store.get_run(run_id).result_id)


@lru_cache(maxsize=32)
def _load_once(store: Any, run_id: str, result_id: str | None) -> Any:
    return store.load_result(run_id)


def may_stop(job: Any) -> bool:
    """Whether this visitor asked for `job`, or nobody who did is still there."""
    return visitor() in job.owners or all(_gone(owner) for owner in job.owners)


def stop(job_id: str) -> None:
    """Withdraw from the job because a person said so: no slot starts it again by itself.

    Those who have closed the page withdraw too; the job goes on only where another visitor still waits for it.
    """
    _withdraw(job_id, front().cancel)


def pause(job_id: str) -> None:
    """Withdraw from a benchmark for now, as `stop` does; the same question goes on where it stood."""
    _withdraw(job_id, front().pause)


def _withdraw(job_id: str, leave: Callable[[str, str], None]) -> None:
    job = front().snapshot(job_id)
    for owner in () if job is None else job.owners:
        if owner == visitor() or _gone(owner):
            leave(job_id, owner)
    for held in st.session_state["slots"].values():
        if held.get("job") == job_id:
            held["stopped"] = True
