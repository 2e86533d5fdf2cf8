"""Speed of benchmarks (answers per second) and of scoring (texts per second): medians of the newest measurements.

Only generated answers and their time count, not stored ones. A speed belongs to a model, a device and the prompt
settings, not to the arms or problems.
"""

from stethoscope.pipeline.context import Context
from stethoscope.progress import Progress
from stethoscope.records import BenchSpec, ModelRef
from stethoscope.statistics import CANNOT_BE_SIGNIFICANT, FEWEST_RANDOM_SETS, cannot_reach, smallest_rank_p
from stethoscope.store.ids import content_id
from stethoscope.store.measured import cost_text, get_measured, measured_rate, put_measured, scored_key

NEWEST = 5


def note_rate(spec: BenchSpec, context: Context, n_answers: int, elapsed_s: float, progress: Progress) -> None:
    """Record that a benchmark like `spec` generated, graded and stored `n_answers` in `elapsed_s`; zero answers are
    ignored."""
    _note(context, _key(spec, context), n_answers, elapsed_s, progress)


def answer_rate(spec: BenchSpec, context: Context) -> float | None:
    """Return answers per second; None if no such benchmark has generated answers."""
    return measured_rate(context.store.database, _key(spec, context))


def note_scored(model: ModelRef, context: Context, n_texts: int, elapsed_s: float, progress: Progress) -> None:
    """Record that scoring `n_texts` gold solutions took `elapsed_s`."""
    _note(context, _scored_key(model, context), n_texts, elapsed_s, progress)


def tell_estimate(model: ModelRef, what: str, n_texts: int, context: Context, progress: Progress) -> None:
    """Report how long scoring `n_texts` gold solutions will take at the measured speed."""
    rate = measured_rate(context.store.database, _scored_key(model, context))
    progress.note(f"{what} scores {cost_text(n_texts, rate)}. An interruption loses at most one pass.")


def tell_too_few_sets(n_sets: int, progress: Progress) -> None:
    """Report beforehand if a rank among so few random sets cannot be significant."""
    if cannot_reach(smallest_rank_p(n_sets)):
        progress.note(
            f"A rank among {n_sets} sets {CANNOT_BE_SIGNIFICANT}: the smallest possible p is "
            f"{smallest_rank_p(n_sets):.3f}; at least {FEWEST_RANDOM_SETS} sets are needed."
        )


def _note(context: Context, key: str, n: int, elapsed_s: float, progress: Progress) -> None:
    database = context.store.database

    def put() -> None:
        known = get_measured(database, key) or []
        put_measured(database, key, [*known, n / elapsed_s][-NEWEST:])

    if n and elapsed_s > 0:
        context.backlog.write(put, progress)


def _scored_key(model: ModelRef, context: Context) -> str:
    assert context.loaded is not None, "the device is known when the model is loaded"
    return scored_key(model, context.loaded.device.type)


def _key(spec: BenchSpec, context: Context) -> str:
    assert context.loaded is not None, "the device is known when the model is loaded"
    asked = f"{spec.max_new_tokens} tokens, batch {spec.batch_size}, chat template {spec.chat_template}"
    return f"answers per second: {content_id(spec.model)}, {context.loaded.device.type}, {asked}"
