"""The worker thread, which owns the model; other threads submit specs and read snapshots.

Pages never import torch: `front()` gives a `JobFront`, whose worker imports the pipeline in its own thread. Jobs are
queued in order, interactive ones before batch jobs. A running batch job yields between its steps: waiting interactive
jobs on the same model run at that point, in the same thread, while the batch job's edit is removed by swapping
pointers. Background jobs, which a page starts automatically, come last, and return to the queue as soon as a requested
job is waiting. A job contains its complete spec, so no edit outlives its job and visitors never see each other's edits.
"""

import atexit
import gc
import itertools
import os
import threading
import time
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Literal

from stethoscope.errors import Cancelled, Paused
from stethoscope.jobs.job import ErrorInfo, Job, JobSnapshot, JobState, describe_error
from stethoscope.profiles import Profile
from stethoscope.records import InfoSpec, Spec
from stethoscope.results import Certificate, InfoResult, ModelRow, Result
from stethoscope.store.cache import ArrayCache
from stethoscope.store.home import cache_dir, runs_dir
from stethoscope.store.ids import content_id
from stethoscope.store.runs import RunStore

if TYPE_CHECKING:
    from stethoscope.pipeline.context import Context

KEPT_JOBS = 256
CLOSE_TIMEOUT_S = 20.0
ANYBODY = ""  # owner of jobs that no visitor requested


@dataclass(frozen=True)
class WorkerStatus:
    """State of the worker. `base_verified`: whether all weights match the loaded ones (None before the first check)."""

    state: Literal["idle", "loading", "busy"]
    model: ModelRow | None
    device: str | None
    memory_bytes: int
    certificate: Certificate | None
    base_verified: bool | None


def memory_bytes() -> int:
    """Return the resident memory of this process in bytes (0 if unknown)."""
    try:
        with open("/proc/self/statm", encoding="ascii") as file:
            return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except OSError:
        return 0


class JobFront:
    """Submits specs to the worker and reads snapshots; thread-safe."""

    def __init__(self, store: RunStore, *, device: str = "auto", cache: ArrayCache | None = None) -> None:
        self.store = store
        self._cache = cache
        self._device = device
        self._letting_go = False
        self._changed = threading.Condition()
        self._closed = False
        self._jobs: OrderedDict[str, Job] = OrderedDict()
        self._numbers = itertools.count()
        self._state: Literal["idle", "loading", "busy"] = "idle"
        self._model: ModelRow | None = None
        self._certificate: Certificate | None = None
        self._base_verified: bool | None = None
        self._thread = threading.Thread(target=self._work, name="stethoscope-worker", daemon=True)
        self._thread.start()

    # --- for pages: any thread ------------------------------------------------------------------------------------

    def submit(
        self,
        spec: Spec,
        *,
        interactive: bool = True,
        background: bool = False,
        title: str | None = None,
        owner: str = ANYBODY,
    ) -> str:
        """Queue `spec` for `owner` and return its job id; a spec that is already waiting, running or done is not run
        again.

        An interactive request promotes a waiting batch job, and any request promotes a `background` job.
        """
        content = content_id(spec)
        with self._changed:
            for job in self._jobs.values():
                if job.content == content and job.may_stand_for_another and not self._is_of_the_past(job):
                    job.owners.add(owner)
                    job.interactive = job.interactive or interactive
                    job.background = job.background and background
                    return job.job_id
            number = next(self._numbers)
            job_id = f"j{number:05d}-{content[-6:]}"
            self._jobs[job_id] = Job(
                job_id, number, spec, title or type(spec).__name__, content, interactive, background, {owner}
            )
            self._forget_old_jobs()
            self._changed.notify_all()
        return job_id

    def follow(self, job_id: str, owner: str) -> None:
        """Add `owner` to the owners of a waiting or running job."""
        with self._changed:
            job = self._jobs.get(job_id)
            if job is not None and job.active:
                job.owners.add(owner)

    def snapshot(self, job_id: str) -> JobSnapshot | None:
        """Return a snapshot of the job; None for an id of another process or a job that is no longer known."""
        with self._changed:
            job = self._jobs.get(job_id)
            return None if job is None else job.snapshot()

    def cancel(self, job_id: str, owner: str = ANYBODY) -> None:
        """Withdraw `owner` from a waiting or running job; the job stops when it has no owners left."""
        with self._changed:
            job = self._jobs.get(job_id)
            if job is not None and job.active:
                job.owners.discard(owner)
                if not job.owners:
                    self._stop(job)

    def pause(self, job_id: str, owner: str = ANYBODY) -> None:
        """Withdraw `owner` from a benchmark like `cancel`, but set the state of job and run to "paused".

        Its finished blocks are stored, and submitting its spec again continues. Jobs of other kinds are not affected
        (see `JobSnapshot.may_pause`).
        """
        with self._changed:
            job = self._jobs.get(job_id)
            if job is not None and job.snapshot().may_pause:
                job.owners.discard(owner)
                if not job.owners:
                    self._stop(job, for_now=True)

    def active(self) -> list[JobSnapshot]:
        """Return the running and waiting jobs, running ones first."""
        with self._changed:
            snapshots = [job.snapshot() for job in self._jobs.values() if job.active]
        return sorted(snapshots, key=lambda snapshot: snapshot.state != "running")

    def status(self) -> WorkerStatus:
        """Return the state of the worker, and the certificate of the last job with one."""
        with self._changed:
            return WorkerStatus(
                state=self._state,
                model=self._model,
                device=self._model.device if self._model else None,
                memory_bytes=memory_bytes(),
                certificate=self._certificate,
                base_verified=self._base_verified,
            )

    def warm_up(self, profile: Profile) -> str:
        """Load the profile's model and read its task vectors in the worker; return the job id."""
        spec = InfoSpec(model=profile.model, saes=profile.saes, task_vectors=profile.task_vectors)
        return self.submit(spec, title=f"Loading {profile.title}")

    @property
    def device(self) -> str:
        """Name of the device for loading models (see `model.devices.pick_device`)."""
        with self._changed:
            return self._device

    def unload(self, *, device: str | None = None) -> None:
        """Unload the model when no job is running, and use `device` from then on (None: unchanged)."""
        with self._changed:
            self._device = device or self._device
            self._letting_go = True
            self._changed.notify_all()

    def close(self) -> None:
        """Cancel all jobs, stop the worker and its grader processes, and wait for it; stored answers are kept."""
        with self._changed:
            for job in self._jobs.values():
                if job.active:
                    self._stop(job)
            self._closed = True
            self._changed.notify_all()
        self._thread.join(timeout=CLOSE_TIMEOUT_S)

    # --- under the lock -------------------------------------------------------------------------------------------

    @staticmethod
    def _stop(job: Job, *, for_now: bool = False) -> None:
        if for_now:
            job.progress.pause()
        else:
            job.progress.cancel()
        if job.state == "queued":
            job.state = "paused" if for_now else "cancelled"

    def _is_of_the_past(self, job: Job) -> bool:
        """Whether `job` loaded a model that has been replaced, so that its effect is gone."""
        return isinstance(job.result, InfoResult) and (self._letting_go or job.result.model != self._model)

    def _forget_old_jobs(self) -> None:
        finished = [job_id for job_id, job in self._jobs.items() if not job.active]
        for job_id in finished[: max(0, len(self._jobs) - KEPT_JOBS)]:
            del self._jobs[job_id]

    def _first_waiting(self, fits: Callable[[Job], bool]) -> Job | None:
        waiting = [job for job in self._jobs.values() if job.state == "queued" and fits(job)]
        return min(waiting, key=lambda job: job.order, default=None)

    # --- the worker's thread --------------------------------------------------------------------------------------

    def _work(self) -> None:
        context: Context | None = None
        while not self._closed:
            job = self._next()
            self._let_go(context)
            if job is None:
                continue
            with self._changed:
                self._state = "busy" if context is not None and context.loaded else "loading"
            try:
                context = context or self._open_context()
            except Exception as error:  # noqa: BLE001 - the worker must survive all errors; the page shows them
                self._finish(job, "failed", error=describe_error(error))
                continue
            self._run(job, context)
            self._rest(context)
        if context is not None:
            context.close()

    def _next(self) -> Job | None:
        """Wait for a job and return it as running; None if the front was closed or unloads its model."""
        with self._changed:
            self._changed.wait_for(
                lambda: self._closed or self._letting_go or self._first_waiting(lambda _: True) is not None
            )
        return None if self._closed or self._letting_go else self._take(lambda _: True)

    def _let_go(self, context: "Context | None") -> None:
        with self._changed:
            if not self._letting_go:
                return
            device = self._device
        if context is not None:
            context.move_to(device)
        with self._changed:
            self._letting_go = device != self._device
            self._model, self._certificate, self._base_verified = None, None, None

    def _take(self, fits: Callable[[Job], bool]) -> Job | None:
        with self._changed:
            job = self._first_waiting(fits)
            if job is not None:
                job.state, job.started = "running", time.perf_counter()
                job.progress.start("Starting", 0)
            return job

    def _open_context(self) -> "Context":
        import torch  # imports transformers, in the worker and not in a page

        from stethoscope.pipeline.context import Context

        cores = os.cpu_count() or 2
        torch.set_num_threads(max(1, cores - 1))  # leave one core to the pages; sharing it slows down both
        context = Context(self.store, device=self._device, cache=self._cache)
        gc.collect()
        gc.freeze()
        return context

    def _run(self, job: Job, context: "Context") -> None:
        """Run `job` until it ends in any state; no error of a job leaves this method."""
        from stethoscope import pipeline

        if not job.interactive:
            job.progress.pass_ahead = partial(self._let_pass, job, context)
            job.progress.others_wait = partial(self._others_wait, job)
        try:
            outcome = pipeline.run(job.spec, context, job.progress)
        except Cancelled as stopped:
            if not self._put_back(job):
                self._finish(job, "paused" if isinstance(stopped, Paused) else "cancelled")
        except Exception as error:  # noqa: BLE001 - the worker must survive all errors; the page shows them
            self._finish(job, "failed", error=describe_error(error))
        else:
            unkept = None if outcome.unkept is None else describe_error(outcome.unkept)
            self._finish(job, outcome.state, result=outcome.result, run_id=outcome.run_id, error=unkept)

    def _others_wait(self, job: Job) -> bool:
        """Whether `job` is in the background and a requested job is waiting."""
        with self._changed:
            return job.background and self._first_waiting(lambda other: not other.background) is not None

    def _put_back(self, job: Job) -> bool:
        """Return a background job that stopped for others to the queue; return False if it was cancelled."""
        with self._changed:
            if not job.background or job.progress.cancelled:
                return False
            job.progress.pausing = False
            job.state, job.started = "queued", None
            return True

    def _let_pass(self, batch: Job, context: "Context") -> None:
        """Run the waiting interactive jobs between two steps of `batch`, on the base; jobs on another model keep
        waiting."""
        if context.loaded is None:
            return

        ref = context.loaded.ref  # without the model itself, which the function below would keep alive

        def fits(job: Job) -> bool:
            return job.interactive and not job.background and all(model == ref for model in job.models)

        job = self._take(fits)
        if job is None:
            return
        with batch.progress.clock_stopped(), context.set_aside():
            while job is not None:
                self._run(job, context)
                job = self._take(fits)

    def _finish(
        self,
        job: Job,
        state: JobState,
        *,
        result: Result | None = None,
        run_id: str | None = None,
        error: ErrorInfo | None = None,
    ) -> None:
        with self._changed:
            job.result, job.run_id, job.error = result, run_id, error
            job.finished = time.perf_counter()
            job.state = state
            if isinstance(result, InfoResult):
                self._model = result.model
            certificate = getattr(result, "certificate", None)
            if isinstance(certificate, Certificate):
                self._certificate = certificate

    def _rest(self, context: "Context") -> None:
        """While idle, hash all weights again, because the model must be the base after every job."""
        from stethoscope.pipeline.info import model_row

        verified = context.base_verified(go_on=lambda: self._idle)
        with self._changed:
            if self._first_waiting(lambda _: True) is not None:
                return
            if verified is not None:
                self._base_verified = verified
            self._model = None if context.loaded is None else model_row(context)
            self._state = "idle"

    @property
    def _idle(self) -> bool:
        with self._changed:
            return not self._closed and self._first_waiting(lambda _: True) is None


_front: JobFront | None = None
_front_lock = threading.Lock()


def front() -> JobFront:
    """Return the job front of this process, started on first use (module state, so that clearing caches cannot
    duplicate it)."""
    global _front
    with _front_lock:
        if _front is None:
            _front = JobFront(RunStore(runs_dir()), cache=ArrayCache(cache_dir()))
            atexit.register(_front.close)  # a thread inside torch would abort the process at interpreter exit
        return _front
