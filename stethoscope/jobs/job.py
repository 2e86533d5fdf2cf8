"""One job: its spec, who asked for it, how far it is, and what a page may see of it.

A job is shared by all who ask for the same spec; it stops when the last of them has withdrawn.
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
    """What a page shows of an error; `detail` is the copyable traceback of an error of ours."""

    what: str
    got: str | None = None
    expected: str | None = None
    next_step: str | None = None
    detail: str | None = None


@dataclass(frozen=True)
class JobSnapshot:
    """A job as it stands now.

    Attributes:
        spec: what was asked.
        state: "paused" is a benchmark that left the worker with its finished blocks stored; the same spec goes on.
        detail: where in the stage the work is, in words; empty where the count says it all.
        rate: items per second of the current stage; time in which other jobs passed ahead is not counted.
        eta_s: seconds to the end of the stage at that rate.
        unit: of the items: "B" for bytes, "" for things that are counted.
        text: what was streamed so far, by channel.
        error: why it failed; beside a result, why the store could not keep that.
        partial: the result as it stands while the job runs, where the use case shows one.
        owners: who asked for it and has not withdrawn.
        notes: what the work told people to know (see `Progress.note`), each once, oldest first.
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
        """True while the job waits or runs."""
        return self.state in ("queued", "running")

    @property
    def may_pause(self) -> bool:
        """True for a job that waits or runs and can be gone on with later: see `UseCase.resumable`."""
        return self.active and use_case_of(self.spec).resumable


class JobProgress(Progress):
    """Progress that a page can look at.

    In a batch job `pass_ahead` runs the interactive jobs that wait; work that nobody asked for stops for now as soon as
    `others_wait` says so.
    """

    def __init__(self) -> None:
        super().__init__()
        self.text: dict[str, list[str]] = {}
        self.partial: Result | None = None
        self.notes: dict[str, None] = {}  # in the order in which they were told
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
    """The worker's own record of a job; everything that changes in it changes under the front's lock.

    Attributes:
        background: a page started it by itself; whatever a person asks for goes first.
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
        """True while the job waits or runs."""
        return self.state in ("queued", "running")

    @property
    def order(self) -> tuple[bool, bool, int]:
        """Sorts waiting jobs: what was asked for first, interactive ahead of batch jobs, then as they came."""
        return (self.background, not self.interactive, self.number)

    @property
    def may_stand_for_another(self) -> bool:
        """Whether a new job of the same spec would only repeat this one."""
        if self.active:
            return not self.progress.stopping
        return self.state == "done" and not use_case_of(self.spec).repeatable

    def snapshot(self) -> JobSnapshot:
        """Return the job as it stands now."""
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
    """Return what a page shows of `error`: the four parts of a user's mistake, or one line and the traceback."""
    if isinstance(error, UserError):
        return ErrorInfo(error.what, error.got, error.expected, error.next_step)
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":
        advice = ResourceError(
            "not enough memory for this step",
            next_step="Use fewer documents, layers or a smaller batch and try again.",
            got="an allocation that failed",
        )
        return ErrorInfo(advice.what, next_step=advice.next_step, detail=traceback.format_exc())
    return ErrorInfo(
        f"Unexpected {type(error).__name__}: {error}",
        next_step="Nothing stored was lost. Please report this with the detail below.",
        detail="".join(traceback.format_exception(error)),
    )
