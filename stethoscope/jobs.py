"""One worker thread owns the model; everybody else submits specs and reads snapshots.

Pages never import torch: `front()` gives a `JobFront`, whose worker imports the pipeline in its own thread. Jobs
wait in a priority queue (interactive ahead of batch), report progress by counting finished items, stream text into
named channels and stop when asked to. A job carries its whole spec, so no edit outlives it and two visitors never
see each other's.
"""

import atexit
import gc
import itertools
import os
import queue
import threading
import time
import traceback
from collections import OrderedDict
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

from stethoscope.errors import Cancelled, ResourceError, UserError
from stethoscope.profiles import Profile
from stethoscope.progress import Progress
from stethoscope.records import ExportSpec, InfoSpec, Spec
from stethoscope.results import Certificate, InfoResult, ModelRow, Result
from stethoscope.store.home import runs_dir
from stethoscope.store.ids import content_id
from stethoscope.store.runs import RunStore

if TYPE_CHECKING:
    from stethoscope.pipeline.context import Context

JobState = Literal["queued", "running", "done", "cancelled", "failed"]
KEPT_JOBS = 256
STOP, INTERACTIVE, BATCH = -1, 0, 1
CLOSE_TIMEOUT_S = 20.0


@dataclass(frozen=True)
class ErrorInfo:
    """What a page shows of an error; `detail` is the copyable traceback of an error of ours."""

    what: str
    got: str | None = None
    expected: str | None = None
    next_step: str | None = None
    detail: str | None = None


@dataclass(frozen=True)
class JobSnapshot:
    """A job as it stands now. `rate` is finished items per second of the current stage, `eta_s` seconds to its end."""

    job_id: str
    kind: str
    title: str
    state: JobState
    stage: str
    done: int
    total: int
    elapsed_s: float
    rate: float | None
    eta_s: float | None
    text: dict[str, str]
    result: Result | None
    run_id: str | None
    error: ErrorInfo | None

    @property
    def active(self) -> bool:
        """True while the job waits or runs."""
        return self.state in ("queued", "running")


@dataclass(frozen=True)
class WorkerStatus:
    """What the worker holds. `base_verified`: all weights hash to what was loaded (None before the first check)."""

    state: Literal["idle", "loading", "busy"]
    model: ModelRow | None
    device: str | None
    memory_bytes: int
    certificate: Certificate | None
    base_verified: bool | None


class _JobProgress(Progress):
    def __init__(self) -> None:
        super().__init__()
        self.stage_started = time.perf_counter()
        self.text: dict[str, list[str]] = {}

    def start(self, stage: str, total: int) -> None:
        super().start(stage, total)
        self.stage_started = time.perf_counter()

    def write(self, channel: str, text: str) -> None:
        self.text.setdefault(channel, []).append(text)


@dataclass
class _Job:
    job_id: str
    spec: Spec
    title: str
    content: str
    progress: _JobProgress = field(default_factory=_JobProgress)
    state: JobState = "queued"
    started: float | None = None
    finished: float | None = None
    result: Result | None = None
    run_id: str | None = None
    error: ErrorInfo | None = None

    def snapshot(self) -> JobSnapshot:
        progress = self.progress
        now = self.finished or time.perf_counter()
        in_stage_s = now - progress.stage_started
        rate = progress.done / in_stage_s if self.state == "running" and progress.done and in_stage_s > 0 else None
        return JobSnapshot(
            job_id=self.job_id,
            kind=type(self.spec).__name__,
            title=self.title,
            state=self.state,
            stage=progress.stage,
            done=progress.done,
            total=progress.total,
            elapsed_s=now - self.started if self.started else 0.0,
            rate=rate,
            eta_s=(progress.total - progress.done) / rate if rate else None,
            text={channel: "".join(list(parts)) for channel, parts in list(progress.text.items())},
            result=self.result,
            run_id=self.run_id,
            error=self.error,
        )


def describe_error(error: BaseException) -> ErrorInfo:
    """Return what a page shows of `error`: the four parts of a user's mistake, or one line and the traceback."""
    if isinstance(error, UserError):
        return ErrorInfo(error.what, error.got, error.expected, error.next_step)
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":
        advice = ResourceError(
            "not enough memory for this step", next_step="Use fewer documents, layers or a smaller batch and try again."
        )
        return ErrorInfo(advice.what, next_step=advice.next_step, detail=traceback.format_exc())
    return ErrorInfo(
        f"Unexpected {type(error).__name__}: {error}",
        next_step="Nothing stored was lost. Please report this with the detail below.",
        detail="".join(traceback.format_exception(error)),
    )


def memory_bytes() -> int:
    """Return the resident memory of this process in bytes (0 where the system does not tell)."""
    try:
        with open("/proc/self/statm", encoding="ascii") as file:
            return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except OSError:
        return 0


class JobFront:
    """Submits specs to the one worker and reads snapshots; safe to call from any thread."""

    def __init__(self, store: RunStore, *, device: str = "auto") -> None:
        self.store = store
        self._device = device
        self._lock = threading.Lock()
        self._jobs: OrderedDict[str, _Job] = OrderedDict()
        self._queue: queue.PriorityQueue[tuple[int, int, str]] = queue.PriorityQueue()
        self._order = itertools.count()
        self._state: Literal["idle", "loading", "busy"] = "idle"
        self._model: ModelRow | None = None
        self._certificate: Certificate | None = None
        self._base_verified: bool | None = None
        self._thread = threading.Thread(target=self._work, name="stethoscope-worker", daemon=True)
        self._thread.start()

    def submit(self, spec: Spec, *, interactive: bool = True, title: str | None = None) -> str:
        """Queue `spec` and return its job id; the same spec that waits, runs or is done is not run twice."""
        content = content_id(spec)
        with self._lock:
            for job in self._jobs.values():
                if job.content == content and self._may_stand_for_another(job):
                    return job.job_id
            number = next(self._order)
            job = _Job(f"j{number:05d}-{content[-6:]}", spec, title or type(spec).__name__, content)
            self._jobs[job.job_id] = job
            self._forget_old_jobs()
        self._queue.put((INTERACTIVE if interactive else BATCH, number, job.job_id))
        return job.job_id

    @staticmethod
    def _may_stand_for_another(job: _Job) -> bool:
        """Whether a new job of the same spec would only repeat this one; a done export has effects to be had again."""
        return job.state in ("queued", "running") or (job.state == "done" and not isinstance(job.spec, ExportSpec))

    def snapshot(self, job_id: str) -> JobSnapshot | None:
        """Return the job as it stands, or None for an id of another process or one long forgotten."""
        with self._lock:
            job = self._jobs.get(job_id)
            return None if job is None else job.snapshot()

    def cancel(self, job_id: str) -> None:
        """Ask a waiting or running job to stop; finished and unknown jobs are left alone."""
        with self._lock:
            job = self._jobs.get(job_id)
            if job is None or job.state not in ("queued", "running"):
                return
            job.progress.cancel()
            if job.state == "queued":
                job.state = "cancelled"

    def active(self) -> list[JobSnapshot]:
        """Return the running and waiting jobs, running ones first."""
        with self._lock:
            snapshots = [job.snapshot() for job in self._jobs.values() if job.state in ("queued", "running")]
        return sorted(snapshots, key=lambda snapshot: snapshot.state != "running")

    def status(self) -> WorkerStatus:
        """Return what the worker holds and the certificate of the last job that had one."""
        with self._lock:
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

    def _forget_old_jobs(self) -> None:
        finished = [job_id for job_id, job in self._jobs.items() if job.state not in ("queued", "running")]
        for job_id in finished[: max(0, len(self._jobs) - KEPT_JOBS)]:
            del self._jobs[job_id]

    def close(self) -> None:
        """Cancel everything, stop the worker and its grader processes, and wait for it; stored items stay."""
        with self._lock:
            jobs = list(self._jobs)
        for job_id in jobs:
            self.cancel(job_id)
        self._queue.put((STOP, next(self._order), ""))
        self._thread.join(timeout=CLOSE_TIMEOUT_S)

    def _work(self) -> None:
        context: Context | None = None
        while True:
            priority, _, job_id = self._queue.get()
            if priority == STOP:
                if context is not None:
                    context.close()
                return
            with self._lock:
                job = self._jobs.get(job_id)
                waiting = job is not None and job.state == "queued"
                if job is not None and waiting:
                    job.state, job.started = "running", time.perf_counter()
                    job.progress.start("Starting", 0)
                    self._state = "busy" if context is not None and context.loaded else "loading"
            if job is not None and waiting:
                try:
                    if context is None:
                        context = self._open_context()
                    self._run(job, context)
                except Exception as error:  # noqa: BLE001 - the worker outlives every job; the page shows the error
                    self._finish(job, "failed", error=describe_error(error))
            if context is not None and self._queue.empty():
                self._rest(context)

    def _open_context(self) -> "Context":
        import torch  # with transformers behind it: they load in the worker, not in a page

        from stethoscope.pipeline.context import Context

        cores = os.cpu_count() or 2
        torch.set_num_threads(max(1, cores - 1))  # one core stays with the pages; sharing it stalls both
        context = Context(self.store, device=self._device)
        gc.collect()
        gc.freeze()
        return context

    def _run(self, job: _Job, context: "Context") -> None:
        from stethoscope import pipeline

        try:
            outcome = pipeline.run(job.spec, context, job.progress)
        except Cancelled:
            self._finish(job, "cancelled")
            return
        state = "done" if outcome.complete else "cancelled"
        self._finish(job, state, result=outcome.result, run_id=outcome.run_id)

    def _finish(
        self,
        job: _Job,
        state: JobState,
        *,
        result: Result | None = None,
        run_id: str | None = None,
        error: ErrorInfo | None = None,
    ) -> None:
        with self._lock:
            job.result, job.run_id, job.error = result, run_id, error
            job.finished = time.perf_counter()
            job.state = state
            if isinstance(result, InfoResult):
                self._model = result.model
            certificate = getattr(result, "certificate", None)
            if isinstance(certificate, Certificate):
                self._certificate = certificate

    def _rest(self, context: "Context") -> None:
        """With nothing waiting, hash all weights again: after every job the model must be the base."""
        from stethoscope.pipeline.info import model_row

        loaded = context.loaded
        verified = None if loaded is None else loaded.checksum() == context.base_checksum
        model = None if loaded is None else model_row(context)
        with self._lock:
            self._base_verified, self._model, self._state = verified, model, "idle"


_front: JobFront | None = None
_front_lock = threading.Lock()


def front() -> JobFront:
    """Return the process's one job front, started on first use (module state, so that no cache clearing doubles it)."""
    global _front
    with _front_lock:
        if _front is None:
            _front = JobFront(RunStore(runs_dir()))
            atexit.register(_front.close)  # a thread that is inside torch when the interpreter ends aborts the process
        return _front
