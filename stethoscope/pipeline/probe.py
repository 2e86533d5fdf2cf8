"""Use case: likelihood check. Measures whether the edit makes gold solutions and control texts more likely.

Mean NLL per solution token (nats) of each problem in the same short prompt, edited minus base, paired over a fixed
seeded sample of dev problems, with a t interval. The items' tokens and the base's values are cached, so that moving a
slider needs one forward pass of the edited model.
"""

import time
from collections.abc import Iterable

import numpy as np
from jaxtyping import Float

from stethoscope.delta.certificate import certified
from stethoscope.errors import StethoscopeError
from stethoscope.model.likelihood import encode_solutions, rows_nll
from stethoscope.pipeline import job_memory
from stethoscope.pipeline.context import Context
from stethoscope.pipeline.editing import patch_of
from stethoscope.pipeline.footprint import Setting
from stethoscope.pipeline.probe_items import ProbeSet, batch_size, gold_pairs
from stethoscope.pipeline.rate import note_scored
from stethoscope.pipeline.tuned_on import Seen, scored_problems
from stethoscope.progress import Progress
from stethoscope.records import EditRecipe, ModelRef, ProbeSpec, ProblemsRef, Split
from stethoscope.results import ProbeResult, ProbeRow
from stethoscope.statistics import paired_mean_interval
from stethoscope.store.ids import content_id
from stethoscope.store.measured import get_measured, put_measured


def probe_set(
    model: ModelRef, problems: ProblemsRef, split: Split, n: int, seed: int, context: Context, progress: Progress
) -> ProbeSet:
    """Return the items of `gold_pairs`, encoded and scored with the base (cached).

    The base's values and the scoring speed are stored.
    """
    key = f"{context.identity(model)} {context.identity(problems)} {split} {n} {seed}"

    def make() -> ProbeSet:
        loaded = context.load(model, progress)
        pairs, names = gold_pairs(problems, split, n, seed)
        rows, scored = encode_solutions(loaded, pairs)
        progress.start("Scoring gold solutions with the base", len(rows))
        stored_as = f"base {key} {loaded.device.type}"
        database = context.store.database
        stored = context.backlog.read(lambda: get_measured(database, stored_as), None)
        if stored is not None:
            progress.skip(len(rows))
            base = np.array(stored)
        else:
            base = rows_nll(loaded, rows, scored, batch_size=batch_size(loaded), progress=progress)
            if progress.rate:
                note_scored(model, context, len(rows), len(rows) / progress.rate, progress)
            if np.isfinite(base).all():
                context.backlog.write(lambda: put_measured(database, stored_as, base.tolist()), progress)
        is_control = np.array([name in problems.control_names for name in names])
        return ProbeSet(key, rows, scored, np.array(names), is_control, base)

    return context.probe_sets.get_or_make(key, make)


def edited_nll(recipe: EditRecipe, probes: ProbeSet, context: Context, progress: Progress) -> Float[np.ndarray, " n"]:
    """Return the NLL of every item under `recipe`, from memory, from the store, or measured and stored in both.

    Counts the items on `progress`, which the caller has started. Infinite and NaN values are not stored.
    """
    loaded = context.load(recipe.model, progress)
    key = f"{context.identity(recipe)} {probes.key} {loaded.device.type}"
    if key in context.edited_nll.entries:
        progress.skip(len(probes.rows))

    def make() -> Float[np.ndarray, " n"]:
        database = context.store.database
        stored = context.backlog.read(lambda: get_measured(database, key), None)
        if stored is not None:
            progress.skip(len(probes.rows))
            return np.array(stored)
        patch = patch_of(recipe, context, progress)
        if not patch.tensors:
            progress.skip(len(probes.rows))
            return probes.base
        with certified(loaded, patch) as certifying:
            edited = rows_nll(loaded, probes.rows, probes.scored, batch_size=batch_size(loaded), progress=progress)
        certificate = certifying.certificate
        if not (certificate.base_intact and certificate.as_recomputed):
            raise StethoscopeError(
                f"the scored weights are not those of {content_id(recipe)}; the result was discarded"
            )
        if np.isfinite(edited).all():
            context.backlog.write(lambda: put_measured(database, key, edited.tolist()), progress)
        return edited

    return context.edited_nll.get_or_make(key, make)


def run(spec: ProbeSpec, context: Context, progress: Progress) -> ProbeResult:
    """Return the paired NLL differences of every subject and control corpus."""
    started = time.perf_counter()
    recipe = spec.recipe
    loaded = context.load(recipe.model, progress)
    patch = patch_of(recipe, context, progress)
    probes = probe_set(recipe.model, spec.problems, spec.split, spec.n, spec.seed, context, progress)
    progress.start("Scoring gold solutions", len(probes.rows))
    with certified(loaded, patch) as certifying:
        edited = rows_nll(loaded, probes.rows, probes.scored, batch_size=batch_size(loaded), progress=progress)
    rows = []
    for name in (*spec.problems.subjects, *spec.problems.control_names):
        items = probes.names == name
        interval = paired_mean_interval(edited[items] - probes.base[items])
        rows.append(
            ProbeRow(
                subject=name,
                is_control=name in spec.problems.control_names,
                n=int(items.sum()),
                base_nll=float(probes.base[items].mean()),
                edited_nll=float(edited[items].mean()),
                difference=interval.mean,
                ci_low=interval.low,
                ci_high=interval.high,
            )
        )
    return ProbeResult(
        recipe_id=content_id(recipe),
        rows=tuple(rows),
        certificate=certifying.certificate,
        elapsed_s=time.perf_counter() - started,
    )


def needs(spec: ProbeSpec, setting: Setting, saes_of: job_memory.SaesOf) -> Iterable[job_memory.Parts]:
    """Yield the memory of scoring."""
    yield job_memory.likelihoods(setting)


def smaller(spec: ProbeSpec) -> str:
    """Return a smaller setting."""
    return job_memory.fewer_layers(spec)


def seen(spec: ProbeSpec) -> Seen:
    """Return the problems whose likelihoods are shown."""
    return scored_problems(spec)
