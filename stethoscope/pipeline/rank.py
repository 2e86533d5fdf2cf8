"""Use case: rank. Ranks a recipe's layers among random sets of the same number of layers.

    gain of a set = mean over dev problems of NLL(base) - NLL(edited),  in nats per solution token
    p             = (1 + sets with at least the recipe's gain) / (1 + sets)

Sets are drawn from the layers that such an edit changes, with as many layers as the recipe changes. Layers that the
recipe selects but does not change (tau is 0, or there is no SAE) do not count and remain in every set.

Each set is edited twice: unscaled, with the recipe's task vector, edit type and mean strength; and matched, with alpha
multiplied by ||recipe's edit||_F / ||set's edit||_F, because the norm of a task vector differs between layers and a
larger step may have a larger effect. Every pass is stored when it finishes, so that an interrupted ranking can be
continued.
"""

import math
from collections.abc import Iterable

import numpy as np
from jaxtyping import Float

from stethoscope.delta.patch import check_fit
from stethoscope.errors import RecipeError
from stethoscope.judging.arms import exchange, movable_layers, with_layers
from stethoscope.pipeline import job_memory
from stethoscope.pipeline.context import Context
from stethoscope.pipeline.editing import edit_norm, ground_of
from stethoscope.pipeline.footprint import Setting
from stethoscope.pipeline.gain import draw_sets
from stethoscope.pipeline.probe import edited_nll, probe_set
from stethoscope.pipeline.probe_items import ProbeSet
from stethoscope.pipeline.rate import tell_estimate, tell_too_few_sets
from stethoscope.pipeline.tuned_on import Seen, scored_problems
from stethoscope.progress import Progress
from stethoscope.recipes.files import shown_layers
from stethoscope.records import EditRecipe, RankSpec
from stethoscope.results import RankedSet, RankResult, RankRow
from stethoscope.results.gain import POOLED
from stethoscope.statistics import cannot_reach, paired_mean_interval, rank_p, smallest_rank_p
from stethoscope.store.ids import content_id


def run(spec: RankSpec, context: Context, progress: Progress) -> RankResult:
    """Return the recipe's rank; publish it after every set.

    Raises:
        RecipeError: a recipe that changes nothing, or all layers that such an edit can change, so that there is no
            other set.
    """
    recipe = spec.recipe
    check_fit(context.load(recipe.model, progress), None, recipe)
    ground = ground_of(recipe, context, progress, whole=True)
    layers = movable_layers(recipe, ground)
    size, kept = exchange(recipe, layers)
    own = tuple(layer for layer in recipe.layers if layer not in kept)
    norm = edit_norm(recipe, context, progress)
    if norm == 0:
        raise RecipeError(
            "the recipe changes nothing, so it has no rank",
            expected="layers that the task vector changes",
            got=f"layers {shown_layers(recipe.layers) or 'none'}",
            next_step="Choose other layers, or a strength above 0.",
        )
    n_possible = math.comb(len(layers), size) - 1
    if n_possible < 1:
        raise RecipeError(
            "there are no other sets of layers to compare this recipe with",
            got=f"{size} of the {len(layers)} layers that such an edit can change ({shown_layers(layers)})",
            expected="at least one layer, and fewer than such an edit can change",
            next_step="Choose fewer layers.",
        )
    everything = probe_set(recipe.model, spec.problems, spec.split, spec.n, spec.seed, context, progress)
    probes = everything.part(~everything.is_control)
    drawn = draw_sets(layers, size, spec.n_sets, spec.seed, without=own)
    n_texts = (2 * len(drawn) + 1) * len(probes.rows)
    tell_estimate(recipe.model, "The ranking", n_texts, context, progress)
    tell_too_few_sets(len(drawn), progress)
    progress.start("Ranking among random sets", n_texts)
    gains = probes.base - edited_nll(recipe, probes, context, progress)
    sets: list[RankedSet] = []

    def result() -> RankResult:
        return RankResult(
            spec=spec,
            recipe_id=content_id(recipe),
            n_layers=ground.n_layers,
            movable=layers,
            layers=own,
            norm=norm,
            rows=tuple(_row(subject, items, gains, sets) for subject, items in _groups(probes).items()),
            sets=tuple(sets),
            n_possible=n_possible,
            complete=len(sets) == len(drawn),
        )

    for others in drawn:
        found = _measured(with_layers(recipe, (*kept, *others)), norm, probes, context, progress)
        sets.append(found.model_copy(update={"layers": others}))
        progress.publish(result())
    return result()


def _measured(recipe: EditRecipe, norm: float, probes: ProbeSet, context: Context, progress: Progress) -> RankedSet:
    own_norm = edit_norm(recipe, context, progress)
    if own_norm == 0:  # a span without latents keeps nothing
        progress.skip(2 * len(probes.rows))
        nothing: dict[str, float | None] = dict.fromkeys(_groups(probes), 0.0)
        return RankedSet(layers=tuple(recipe.layers), norm=0.0, scale=1.0, gains=nothing, matched=nothing)
    scale = norm / own_norm
    matched = recipe.model_copy(update={"master_alpha": recipe.master_alpha * scale})
    return RankedSet(
        layers=tuple(recipe.layers),
        norm=own_norm,
        scale=scale,
        gains=_gains(probes, edited_nll(recipe, probes, context, progress)),
        matched=_gains(probes, edited_nll(matched, probes, context, progress)),
    )


def _groups(probes: ProbeSet) -> dict[str, np.ndarray]:
    """Return the positions of the items of all subjects together, and of each subject."""
    subjects = {str(name): np.flatnonzero(probes.names == name) for name in dict.fromkeys(probes.names)}
    return {POOLED: np.arange(len(probes.names))} | subjects


def _gains(probes: ProbeSet, edited: Float[np.ndarray, " n"]) -> dict[str, float | None]:
    found: dict[str, float | None] = {}
    for subject, items in _groups(probes).items():
        gain = float((probes.base[items] - edited[items]).mean())
        found[subject] = gain if math.isfinite(gain) else None
    return found


def _row(subject: str, items: np.ndarray, own: Float[np.ndarray, " n"], sets: list[RankedSet]) -> RankRow:
    interval = paired_mean_interval(own[items])
    as_good = sum(_reaches(found.gains[subject], interval.mean) for found in sets)
    as_good_matched = sum(_reaches(found.matched[subject], interval.mean) for found in sets)
    return RankRow(
        subject=subject,
        n=len(items),
        gain=interval.mean,
        ci_low=interval.low,
        ci_high=interval.high,
        as_good=as_good,
        p=rank_p(as_good, len(sets)),
        as_good_matched=as_good_matched,
        p_matched=rank_p(as_good_matched, len(sets)),
        cannot_be_significant=cannot_reach(smallest_rank_p(len(sets))),
    )


def _reaches(gain: float | None, own: float) -> bool:
    return gain is not None and gain >= own


def needs(spec: RankSpec, setting: Setting, saes_of: job_memory.SaesOf) -> Iterable[job_memory.Parts]:
    """Yield the memory of scoring."""
    yield job_memory.likelihoods(setting)


def smaller(spec: RankSpec) -> str:
    """Return a smaller setting."""
    return job_memory.fewer_layers(spec)


def seen(spec: RankSpec) -> Seen:
    """Return the problems whose likelihoods are shown."""
    return scored_problems(spec)
