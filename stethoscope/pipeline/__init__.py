"""One module per use case; `run` returns the stored result of a spec, or computes and stores it.

Pages and the command line both call `run`. `use_cases` defines which results are stored and reused. The module
`pipeline.<kind>` of a use case has

    run(spec, context, progress)      returns its result
    needs(spec, setting, saes_of)     yields the memory of each of its steps (see `room`); optional
    smaller(spec)                     suggests a smaller setting if memory runs out; optional
    seen(spec)                        the problems whose numbers can be used for tuning (see `tuning`); optional
"""

import contextlib
import time
from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module
from types import ModuleType

from stethoscope.errors import Cancelled, Paused, ResourceError, StoreError, UserError
from stethoscope.pipeline import job_memory, tuned_on
from stethoscope.pipeline.context import Context
from stethoscope.pipeline.settings import settings_of
from stethoscope.progress import Progress
from stethoscope.records import Spec
from stethoscope.results import BenchResult, Result
from stethoscope.store.fingerprints import record_fingerprints, resolve_commits
from stethoscope.store.history import EndState
from stethoscope.store.settings import put_settings
from stethoscope.use_cases import USE_CASES, use_case_of

MODULES: dict[type[Spec], ModuleType] = {case.spec: import_module(f"{__name__}.{case.kind}") for case in USE_CASES}
NO_SMALLER = "Load the model in bfloat16, or use fewer layers or documents."


@dataclass(frozen=True)
class Outcome:
    """A result and the run that stores it, if any.

    Attributes:
        run_id: None if the result is not stored.
        state: "cancelled" and "paused" for a benchmark that was stopped; its result is partial.
        unkept: why the result could not be stored, for example because the disk is full; the result itself is complete.
    """

    result: Result
    run_id: str | None
    state: EndState = "done"
    unkept: UserError | None = None


def run(spec: Spec, context: Context, progress: Progress) -> Outcome:
    """Return the result of `spec`; from the store if the same spec was run on the same weights and problems.

    Raises:
        UserError: the spec is invalid; the run is stored as failed with the message.
        Cancelled: stopped (`Paused`: temporarily) before there was a partial result.
    """
    case = use_case_of(spec)
    if not case.kept:
        result = _within_memory(spec, context, progress)
        return Outcome(result, None, unkept=_remembered(spec, context))
    _hindered(context)  # first store what an earlier run could not
    resolve_commits(spec, progress)
    identity = record_fingerprints(spec, progress)
    if case.reused and (found := context.store.find_result(spec, extra=identity)) is not None:
        return Outcome(found.result, found.run_id, unkept=_remembered(spec, context))
    run_id = context.store.start_run(spec, extra=identity)
    started = time.perf_counter()
    try:
        result = _within_memory(spec, context, progress)
    except Exception as error:
        with contextlib.suppress(UserError):  # on a full disk: report the first error
            _store_failure(run_id, error, context, time.perf_counter() - started)
            if isinstance(error, Cancelled):
                _remember(spec, context)  # published numbers count as seen
        raise
    elapsed_s = time.perf_counter() - started
    state: EndState = "done"
    if isinstance(result, BenchResult) and not result.complete:
        state = "cancelled" if progress.cancelled else "paused"
    settings = None if context.loaded is None else settings_of(context.loaded, spec)

    def put() -> None:
        if settings is not None:
            put_settings(context.store.database, run_id, settings)
        context.store.finish_run(run_id, state=state, result=result, error=None, elapsed_s=elapsed_s)

    unkept = _hindered(context, put)
    kept_as = run_id if unkept is None else None
    remembered = _remembered(spec, context)
    return Outcome(result, kept_as, state, unkept or remembered)


def _store_failure(run_id: str, error: Exception, context: Context, elapsed_s: float) -> None:
    """Store the final state of a run without a result."""
    state: EndState = "failed"
    if isinstance(error, Cancelled):
        state = "paused" if isinstance(error, Paused) else "cancelled"
    said = str(error) if isinstance(error, UserError | Cancelled) else f"{type(error).__name__}: {error}"
    context.store.finish_run(run_id, state=state, result=None, error=said, elapsed_s=elapsed_s)


def _remember(spec: Spec, context: Context) -> None:
    """Store the problems whose numbers `spec` has shown, because they can be used for tuning."""
    seen = getattr(MODULES[type(spec)], "seen", None)
    tuned_on.remember(use_case_of(spec).kind, None if seen is None else seen(spec), context)


def _remembered(spec: Spec, context: Context) -> UserError | None:
    """Store the problems whose numbers `spec` has shown; return the error if that failed, else None."""
    return _hindered(context, lambda: _remember(spec, context))


def _hindered(context: Context, write: Callable[[], None] | None = None) -> UserError | None:
    """Write to the store, after earlier pending writes; return the error if that failed, else None."""
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
    """Free memory and run `spec`; raise `ResourceError` with a smaller setting if memory runs out."""
    module = MODULES[type(spec)]
    try:
        with context.at_work(progress):
            needed = job_memory.needed_bytes(getattr(module, "needs", None), spec, context, progress)
            with context.wanting(needed):
                return module.run(spec, context, progress)
    except (RuntimeError, MemoryError) as error:
        if not job_memory.is_out_of_memory(error):
            raise
        smaller = module.smaller(spec) if hasattr(module, "smaller") else NO_SMALLER
        raise job_memory.after_out_of_memory(smaller, context, error) from None
