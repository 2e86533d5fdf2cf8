"""Use case: dose-response curve. The likelihood check at several master alphas.

Items, prompts and paired intervals are those of the likelihood check. Distant alphas are computed first, and the curve
is published as it grows. Each finished alpha is stored, so that an interrupted curve can be continued. Alpha 0 is the
base, exactly 0.
"""

from collections.abc import Iterable, Sequence

import numpy as np
from jaxtyping import Float

from stethoscope.pipeline import job_memory
from stethoscope.pipeline.context import Context
from stethoscope.pipeline.footprint import Setting
from stethoscope.pipeline.probe import edited_nll, probe_set
from stethoscope.pipeline.probe_items import ProbeSet
from stethoscope.pipeline.tuned_on import Seen, scored_problems
from stethoscope.progress import Progress
from stethoscope.records import DoseSpec
from stethoscope.results import ALL_SUBJECTS, DoseResult, DoseRow
from stethoscope.statistics import paired_mean_interval
from stethoscope.store.ids import content_id


def run(spec: DoseSpec, context: Context, progress: Progress) -> DoseResult:
    """Return the paired NLL differences at every alpha, for each subject, all subjects, and each control corpus."""
    probes = probe_set(spec.recipe.model, spec.problems, spec.split, spec.n, spec.seed, context, progress)
    progress.start("Dose and response", len(spec.alphas) * len(probes.rows))
    rows: dict[float, list[DoseRow]] = {}
    result = None
    for alpha in far_apart_first(spec.alphas):
        recipe = spec.recipe.model_copy(update={"master_alpha": alpha})
        rows[alpha] = _rows_at(alpha, probes, edited_nll(recipe, probes, context, progress))
        result = DoseResult(
            recipe_id=content_id(spec.recipe),
            alphas=spec.alphas,
            rows=tuple(row for known in sorted(rows) for row in rows[known]),
        )
        progress.publish(result)
    assert result is not None, "a curve has at least one alpha"
    return result


def far_apart_first(alphas: Sequence[float]) -> list[float]:
    """Return `alphas` reordered so that distant values come first: both ends, the middle, and so on."""
    order, left = [alphas[0]], list(alphas[1:])
    while left:
        order.append(max(left, key=lambda alpha: min(abs(alpha - known) for known in order)))
        left.remove(order[-1])
    return order


def _rows_at(alpha: float, probes: ProbeSet, edited: Float[np.ndarray, " n"]) -> list[DoseRow]:
    rows = []
    chosen = {ALL_SUBJECTS: ~probes.is_control} | {name: probes.names == name for name in dict.fromkeys(probes.names)}
    for name, items in chosen.items():
        interval = paired_mean_interval(edited[items] - probes.base[items])
        rows.append(
            DoseRow(
                alpha=alpha,
                subject=str(name),
                is_control=bool(probes.is_control[items].all()),
                n=int(items.sum()),
                difference=interval.mean,
                ci_low=interval.low,
                ci_high=interval.high,
            )
        )
    return rows


def needs(spec: DoseSpec, setting: Setting, saes_of: job_memory.SaesOf) -> Iterable[job_memory.Parts]:
    """Yield the memory of scoring."""
    yield job_memory.likelihoods(setting)


def smaller(spec: DoseSpec) -> str:
    """Return a smaller setting."""
    return job_memory.fewer_layers(spec)


def seen(spec: DoseSpec) -> Seen:
    """Return the problems whose likelihoods are shown."""
    return scored_problems(spec)
