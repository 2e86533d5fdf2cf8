"""One module per use case; `run` finds a stored result of a spec or computes, keeps and returns it.

Pages and command line both come in here. Every run but the live probe and the tables of latents becomes a record of the
history; a diagnosis, its stability, an energy table, a table of gains, a rank or a dose-response curve of the same
spec, weights and problems is taken from the store.
"""

import contextlib
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from stethoscope.errors import Cancelled, Paused, ResourceError, StoreError, UserError
from stethoscope.pipeline import (
    bench,
    compare_text,
    diagnose,
    dose,
    download,
    energy,
    examples,
    export,
    gain,
    info,
    latents,
    memory,
    plan,
    preflight,
    probe,
    problems,
    rank,
    room,
    stability,
    tuning,
)
from stethoscope.pipeline.context import Context
from stethoscope.pipeline.settings import settings_of
from stethoscope.progress import Progress
from stethoscope.records import (
    BenchPlanSpec,
    BenchSpec,
    CompareTextSpec,
    DiagnoseSpec,
    DoseSpec,
    DownloadSpec,
    EnergySpec,
    ExportSpec,
    GainSpec,
    InfoSpec,
    LatentExamplesSpec,
    LatentsSpec,
    MemorySpec,
    PreflightSpec,
    ProbeSpec,
    ProblemsSpec,
    RankSpec,
    Spec,
    StabilitySpec,
)
from stethoscope.results import BenchResult, Result
from stethoscope.store.fingerprints import meet, record_fingerprints
from stethoscope.store.history import EndState
from stethoscope.store.settings import put_settings

RUNNERS: dict[type, Callable[[Any, Context, Progress], Result]] = {
    InfoSpec: info.run,
    MemorySpec: memory.run,
    DownloadSpec: download.run,
    PreflightSpec: preflight.run,
    ProblemsSpec: problems.run,
    DiagnoseSpec: diagnose.run,
    StabilitySpec: stability.run,
    LatentsSpec: latents.run,
    LatentExamplesSpec: examples.run,
    EnergySpec: energy.run,
    GainSpec: gain.run,
    ProbeSpec: probe.run,
    DoseSpec: dose.run,
    RankSpec: rank.run,
    CompareTextSpec: compare_text.run,
    BenchSpec: bench.run,
    BenchPlanSpec: plan.run,
    ExportSpec: export.run,
}
KEPT = (DiagnoseSpec, StabilitySpec, EnergySpec, GainSpec, DoseSpec, RankSpec, CompareTextSpec, BenchSpec, ExportSpec)
REUSED = (DiagnoseSpec, StabilitySpec, EnergySpec, GainSpec, DoseSpec, RankSpec)


@dataclass(frozen=True)
class Outcome:
    """A result and, where the history keeps it, the run that made it.

    Attributes:
        run_id: None where it is not kept.
        state: "cancelled" and "paused" are benchmarks that were stopped half-way and show what they have.
        unkept: why the store could not keep it all, on a full disk for example; the result is whole.
    """

    result: Result
    run_id: str | None
    state: EndState = "done"
    unkept: UserError | None = None


def run(spec: Spec, context: Context, progress: Progress) -> Outcome:
    """Return the result of `spec`, from the store where the same spec was run on the same weights and problems.

    Raises:
        UserError: something in the spec does not fit; the run is kept as failed with the message.
        Cancelled: stopped (`Paused`: for now) before there was anything to show.
    """
    if not isinstance(spec, KEPT):
        result = _within_memory(spec, context, progress)
        return Outcome(result, None, unkept=_hindered(context, lambda: tuning.remember(spec, context)))
    _hindered(context)  # what an earlier run could not store comes first
    meet(spec, progress)
    identity = record_fingerprints(spec, progress)
    if isinstance(spec, REUSED) and (found := context.store.find_result(spec, extra=identity)) is not None:
        run_id, result = found
        return Outcome(result, run_id, unkept=_hindered(context, lambda: tuning.remember(spec, context)))
    run_id = context.store.start_run(spec, extra=identity)
    started = time.perf_counter()

    def finish(
        state: EndState, result: Result | None = None, error: str | None = None, ended: float | None = None
    ) -> None:
        elapsed_s = (ended or time.perf_counter()) - started
        context.store.finish_run(run_id, state=state, result=result, error=error, elapsed_s=elapsed_s)

    def fail(error: str) -> None:
        with contextlib.suppress(UserError):  # on a full disk: the error that is told is the first one
            finish("failed", error=error)

    try:
        result = _within_memory(spec, context, progress)
    except Cancelled as error:
        with contextlib.suppress(UserError):  # on a full disk it is found to be interrupted
            finish("paused" if isinstance(error, Paused) else "cancelled", error=str(error))
            tuning.remember(spec, context)  # what was published has been seen
        raise
    except UserError as error:
        fail(str(error))
        raise
    except Exception as error:
        fail(f"{type(error).__name__}: {error}")
        raise
    state: EndState = "done"
    if isinstance(result, BenchResult) and not result.complete:
        state = "cancelled" if progress.cancelled else "paused"

    ended = time.perf_counter()
    settings = None if context.loaded is None else settings_of(context.loaded, spec)

    def put() -> None:
        if settings is not None:
            put_settings(context.store.database, run_id, settings)
        finish(state, result, ended=ended)

    unkept = _hindered(context, put)
    kept_as = run_id if unkept is None else None
    remembered = _hindered(context, lambda: tuning.remember(spec, context))
    return Outcome(result, kept_as, state, unkept or remembered)


def _hindered(context: Context, write: Callable[[], None] | None = None) -> UserError | None:
    """Write to the store, behind what waits for it; return what hindered that, None where nothing did."""
    try:
        if write is None:
            context.backlog.flush()
        else:
            context.backlog.write(write)
        if context.backlog.hindrance is not None:
            raise context.backlog.hindrance
    except (ResourceError, StoreError) as error:
        return type(error)(
            f"the result is shown, and not everything of it could be stored: {error.what}",
            got=error.got,
            expected=error.expected,
            next_step=f"Save what you need of it now. {error.next_step or ''}",
        )
    return None


def _within_memory(spec: Spec, context: Context, progress: Progress) -> Result:
    """Run `spec` with room made for it; raise `ResourceError` with a smaller setting where memory ran out."""
    try:
        with context.at_work(progress), context.wanting(room.needed_bytes(spec, context, progress)):
            return RUNNERS[type(spec)](spec, context, progress)
    except (RuntimeError, MemoryError) as error:
        if not room.is_out_of_memory(error):
            raise
        raise room.after_out_of_memory(spec, context, error) from None
