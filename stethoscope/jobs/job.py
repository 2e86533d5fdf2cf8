"""One job: its spec, owners, progress and snapshots for pages.

All sessions that request the same spec share one job; it stops when the last of them withdraws.
"""

import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Literal, cast

from stethoscope.errors import ResourceError, UserError
from stethoscope.progress import Progress
from stethoscope.records import ModelRef, Spec, nested_records
from stethoscope.results import Result
from stethoscope.use_cases import use_case_of

JobState = Literal["queued", "running", "done", "paused", "cancelled", "failed"]


@dataclass(frozen=True)
class ErrorInfo:
    """The parts of an error that a page shows; `detail` is the traceback of an internal error."""

    what: str
    got: str | None = None
    expected: str | None = None
    next_step: str | None = None
    detail: str | None = None


@dataclass(frozen=True)
class JobSnapshot:
    """The current state of a job.

    Attributes:
        spec: the request.
        state: "paused" is a benchmark that stopped with its finished blocks stored; submitting the same spec continues
            it.
        detail: description of the current step within the stage; may be empty.
        rate: items per second in the current stage, excluding time in which other jobs ran.
        eta_s: seconds to the end of the stage at that rate.
        unit: unit of the items: "B" for bytes, "" for counts.
        text: what was streamed so far, by channel.
        error: why it failed; with a result, why the result could not be stored.
        partial: the interim result while the job runs, if the use case has one.
        owners: sessions that requested it and have not withdrawn.
        notes: notes for the user (see `Progress.note`), without duplicates, oldest first.
    """

    job_id: str
    spec: Spec
    title: str
    state: JobState
    stage: str
    detail: str
    done: int
    total: int
    elapsed_s: float
    rate: float | None
    eta_s: float | None
    text: dict[str, str]
    result: Result | None
    run_id: str | None
    error: ErrorInfo | None
    partial: Result | None = None
    owners: frozenset[str] = frozenset()
    unit: str = ""
    notes: tuple[str, ...] = ()

    @property
    def active(self) -> bool:
        """Whether the job is waiting or running."""
        return self.state in ("queued", "running")

    @property
    def may_pause(self) -> bool:
        """Whether the job is waiting or running and can be resumed later; see `UseCase.resumable`."""
        return self.active and use_case_of(self.spec).resumable


class JobProgress(Progress):
    """Progress that pages can read.

    In a batch job, `pass_ahead` runs waiting interactive jobs. A background job pauses as soon as `others_wait` returns
    True.
    """

    def __init__(self) -> None:
        super().__init__()
        self.text: dict[str, list[str]] = {}
        self.partial: Result | None = None
        self.notes: dict[str, None] = {}  # in the order of reporting
        self.pass_ahead: Callable[[], None] | None = None
        self.others_wait: Callable[[], bool] | None = None

    def note(self, text: str) -> None:
        self.notes[text] = None

    def write(self, channel: str, text: str) -> None:
        self.text.setdefault(channel, []).append(text)

    def publish(self, result: object) -> None:
        self.partial = cast(Result, result)

    def check_cancel(self) -> None:
        if self.others_wait is not None and self.others_wait():
            self.pausing = True
        super().check_cancel()

    def yield_to_interactive(self) -> None:
        self.check_cancel()
        if self.pass_ahead is not None:
            self.pass_ahead()
            self.check_cancel()


@dataclass
class Job:
    """The worker's record of a job; all mutable fields are protected by the front's lock.

    Attributes:
        background: a page started it automatically; requests by the user take precedence.
    """

    job_id: str
    number: int
    spec: Spec
    title: str
    content: str
    interactive: bool
    background: bool
    owners: set[str]
    progress: JobProgress = field(default_factory=JobProgress)
    state: JobState = "queued"
    started: float | None = None
    finished: float | None = None
    result: Result | None = None
    run_id: str | None = None
    error: ErrorInfo | None = None

    def __post_init__(self) -> None:
        self.models = tuple(part for part in nested_records(self.spec) if isinstance(part, ModelRef))

    @property
    def active(self) -> bool:
        """Whether the job is waiting or running."""
        return self.state in ("queued", "running")

    @property
    def order(self) -> tuple[bool, bool, int]:
        """Sort key of waiting jobs: user requests first, interactive before batch jobs, then by time."""
        return (self.background, not self.interactive, self.number)

    @property
    def may_stand_for_another(self) -> bool:
        """Whether a new job with the same spec would only repeat this one."""
        if self.active:
            return not self.progress.stopping
        return self.state == "done" and not use_case_of(self.spec).repeatable

    def snapshot(self) -> JobSnapshot:
        """Return a snapshot of the job."""
        progress, running = self.progress, self.state == "running"
        now = self.finished or time.perf_counter()
        return JobSnapshot(
            job_id=self.job_id,
            spec=self.spec,
            title=self.title,
            state=self.state,
            stage=progress.stage,
            detail=progress.detail,
            done=progress.done,
            total=progress.total,
            elapsed_s=now - self.started if self.started else 0.0,
            rate=progress.rate if running else None,
            eta_s=progress.eta_s if running else None,
            text={channel: "".join(list(parts)) for channel, parts in list(progress.text.items())},
            result=self.result,
            run_id=self.run_id,
            error=self.error,
            partial=progress.partial if running else None,
            owners=frozenset(self.owners),
            unit=progress.unit,
            notes=tuple(progress.notes),
        )


def describe_error(error: BaseException) -> ErrorInfo:
    """Return the parts of `error` to show: the four parts of a `UserError`, or one line and the traceback."""
    if isinstance(error, UserError):
        return ErrorInfo(error.what, error.got, error.expected, error.next_step)
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":
        advice = ResourceError(
            "not enough memory for this step",
            next_step="Use fewer documents or layers, or a smaller batch, and try again.",
            got="an allocation that failed",
        )
        return ErrorInfo(advice.what, next_step=advice.next_step, detail=traceback.format_exc())
    return ErrorInfo(
        f"Unexpected {type(error).__name__}: {error}",
        next_step="Stored results are not affected. Please report this error with the details below.",
        detail="".join(traceback.format_exception(error)),
    )
