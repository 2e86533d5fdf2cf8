"""How many answers a second a benchmark will give: the median of the newest ones that gave any.

Only answers that were generated count, with the time that they took: what came out of the store took none. A rate
belongs to a model, a device and how the problems are asked, not to the arms or problems.
"""

from statistics import median

from stethoscope.pipeline.context import Context
from stethoscope.records import BenchSpec
from stethoscope.store.ids import content_id
from stethoscope.store.measured import get_measured, put_measured

NEWEST = 5


def note_rate(spec: BenchSpec, context: Context, n_answers: int, elapsed_s: float) -> None:
    """Keep that a benchmark like `spec` generated, graded and stored `n_answers` in `elapsed_s`; none say nothing."""
    if n_answers and elapsed_s > 0:
        database, key = context.store.database, _key(spec, context)
        known = get_measured(database, key) or []
        put_measured(database, key, [*known, n_answers / elapsed_s][-NEWEST:])


def answer_rate(spec: BenchSpec, context: Context) -> float | None:
    """Return answers per second; None where no benchmark of the kind has generated any."""
    known = get_measured(context.store.database, _key(spec, context))
    return median(known) if known else None


def _key(spec: BenchSpec, context: Context) -> str:
    assert context.loaded is not None, "the device is known when the model is loaded"
    asked = f"{spec.max_new_tokens} tokens, batch {spec.batch_size}, chat template {spec.chat_template}"
    return f"answers per second: {content_id(spec.model)}, {context.loaded.device.type}, {asked}"
