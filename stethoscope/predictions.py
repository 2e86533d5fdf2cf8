"""Frozen predictions: what a pick claims, and whether a later benchmark bears it out.

A claim about layers is judged by the paired difference of the recipe to equally strong edits of other layers, never
by a count of significant subjects: to the mean of equal-size random draws, with an interval that allows for other
problems and for other draws, and to the bottom, the last and all layers. Holm over these controls, and the four
verdicts of every comparison. It is a prediction only if it was frozen before any answer to those problems.
"""

import math
import random
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

import numpy as np
from scipy import special

from stethoscope.arms import LAYER_CONTROLS, LayerControl, layer_control
from stethoscope.records import BenchArm, BenchSpec, EditRecipe, GradeStatus, Prediction, RawArm, Record
from stethoscope.results import BenchItem, BenchResult
from stethoscope.statistics import holm, verdict

Picked = Literal["top", "bottom", "random", "hand"]
FEWEST_DRAWS = 2
_Answers = dict[tuple[str, str], bool]


@dataclass(frozen=True, slots=True)
class TestedDifference:
    """A difference of accuracies with its interval and two-sided p."""

    difference: float
    low: float
    high: float
    p: float


class BenchRun(NamedTuple):
    """A run of a benchmark: when it started (seconds since 1970) and what it asked."""

    run_id: str
    created_at: float
    spec: BenchSpec


class ControlOutcome(Record):
    """The recipe minus one control, macro over subjects, on the problems that all its arms have answered.

    `control` names the layers of the control; `arms` of it were run (draws, for "random"); `p_holm` is corrected over
    the controls; fractions, positive = the prediction was better.
    """

    control: LayerControl
    arms: int
    n: int
    difference: float
    ci_low: float
    ci_high: float
    p: float
    p_holm: float
    verdict: str


class Outcome(NamedTuple):
    """What a benchmark says about a prediction.

    Attributes:
        arm: the benchmark's arm that the prediction is about.
        same_recipe: False when that arm edits the same layers raw, but differs elsewhere (strengths, for example).
        lead_s: seconds from the freeze to the start of the benchmark; negative: frozen afterwards, no prediction.
        used_before: earlier runs in which this edit answered problems of the same split.
        rows: one per control that was run, in the order random, bottom, last, all.
        missing: controls to add; "random" also while fewer than two draws were run.
    """

    arm: str
    same_recipe: bool
    lead_s: float
    used_before: tuple[str, ...]
    rows: tuple[ControlOutcome, ...]
    missing: tuple[LayerControl, ...]

    @property
    def foretold(self) -> bool:
        """True when it was frozen before the benchmark and before any answer to its problems."""
        return self.lead_s > 0 and not self.used_before


def difference_to_draws(
    ours: Mapping[str, np.ndarray], draws: Mapping[str, np.ndarray], *, level: float = 0.95
) -> TestedDifference:
    """Return our accuracy minus the mean over draws, macro over strata, with Student's t interval and two-sided p.

    With d_i = ours_i - mean_k draws_ki on problem i, S strata of n_s problems and a_k the accuracy of draw k,

        var = sum_s var(d in s) / n_s / S^2 + var(a_1 .. a_K) / K,

    so that both other problems and other draws are allowed for (Welch-Satterthwaite degrees of freedom). One draw is
    a fixed arm: its second term is 0. The first is Agresti and Min's (2005): half a problem is added to each cell of a
    stratum's paired table, so that agreement on every problem is no certainty.

    Args:
        ours: right or wrong by stratum (bool [n]).
        draws: the same problems in the same order, one row a draw (bool [K, n]).
    """
    assert ours, "no strata to total"
    assert ours.keys() == draws.keys(), "ours and draws need the same strata"
    n_draws = len(next(iter(draws.values())))
    by_draw = np.zeros(n_draws)
    difference = variance = 0.0
    n_problems = 0
    for stratum, right in ours.items():
        right, others = np.asarray(right, dtype=float), np.asarray(draws[stratum], dtype=float)
        n = len(right)
        assert n > 0, f"{stratum}: no problems"
        assert others.shape == (n_draws, n), f"{stratum}: not paired, {right.shape} and {others.shape}"
        weights = np.concatenate([np.ones(n), np.full(4, 0.5)])
        values = np.concatenate([right - others.mean(axis=0), [1.0, -1.0, 0.0, 0.0]])
        centre = float(np.average(values, weights=weights))
        variance += float(np.dot(weights, (values - centre) ** 2)) / (n + 1) / n
        difference += float(right.mean() - others.mean())
        by_draw += others.mean(axis=1)
        n_problems += n
    size = len(ours)
    over_problems, over_draws = variance / size**2, 0.0
    if n_draws > 1:
        over_draws = float((by_draw / size).var(ddof=1)) / n_draws
    freedom = (over_problems + over_draws) ** 2 / (
        over_problems**2 / max(n_problems - size, 1) + (over_draws**2 / (n_draws - 1) if n_draws > 1 else 0.0)
    )
    error = math.sqrt(over_problems + over_draws)
    mean = difference / size
    half = float(special.stdtrit(freedom, (1 + level) / 2)) * error
    p = 2 * float(special.stdtr(freedom, -abs(mean) / error))
    return TestedDifference(mean, max(mean - half, -1.0), min(mean + half, 1.0), p)


def random_pick(n_layers: int, n: int, seed: int) -> tuple[int, ...]:
    """Return `n` distinct layers of `n_layers` in ascending order, the same for the same seed."""
    return tuple(sorted(random.Random(f"pick-{seed}-{n_layers}").sample(range(n_layers), min(n, n_layers))))


def how_picked(layers: Collection[int], order: Sequence[int], n_layers: int, seed: int | None) -> Picked:
    """Return how `layers` can have been picked; never what a person says, always what can be checked.

    Args:
        order: the layers of the subject, best first.
        seed: of the last random pick, None where there was none since.
    """
    n, chosen = len(layers), set(layers)
    if seed is not None and chosen == set(random_pick(n_layers, n, seed)):
        return "random"
    if n and chosen == set(order[:n]):
        return "top"
    return "bottom" if n and chosen == set(order[-n:]) else "hand"


def same_claim(prediction: EditRecipe, recipe: EditRecipe) -> bool:
    """Return whether `recipe` puts the prediction to the test: it is the same, or edits the same layers raw."""
    return prediction == recipe or (
        isinstance(recipe.arm, RawArm)
        and recipe.model == prediction.model
        and recipe.task_vector == prediction.task_vector
        and recipe.layers.keys() == prediction.layers.keys()
    )


def runs_of(recipe: EditRecipe, runs: Iterable[BenchRun]) -> list[BenchRun]:
    """Return the benchmarks in which `recipe` has answered or will answer, whatever became of them."""
    return [run for run in runs if any(arm.recipe and same_claim(recipe, arm.recipe) for arm in run.spec.arms)]


def outcome(
    prediction: Prediction, frozen_at: float, run: BenchRun, result: BenchResult, others: Iterable[BenchRun]
) -> Outcome | None:
    """Return what `run` says about `prediction`, frozen at `frozen_at`; None when it does not put it to the test.

    Args:
        result: of `run`.
        others: every other benchmark that is known, to find earlier answers to the same problems.
    """
    arm = _arm_of(prediction, run.spec)
    if arm is None or arm.recipe is None:
        return None
    used = [
        earlier.run_id
        for earlier in runs_of(prediction.recipe, others)
        if earlier.run_id != run.run_id and earlier.created_at < frozen_at and _share_problems(earlier.spec, run.spec)
    ]
    found: dict[LayerControl, list[str]] = {}
    for other in run.spec.arms:
        if (kind := layer_control(other, arm.recipe)) is not None:
            found.setdefault(kind, []).append(other.name)
    missing: list[LayerControl] = []
    for kind in LAYER_CONTROLS:
        if len(found.get(kind, ())) < (FEWEST_DRAWS if kind == "random" else 1):
            missing.append(kind)
    everything = _answers(result.items, run.spec)
    rows = _judged(arm.name, {kind: found[kind] for kind in LAYER_CONTROLS if kind in found}, everything, run.spec)
    same = arm.recipe == prediction.recipe
    return Outcome(arm.name, same, run.created_at - frozen_at, tuple(used), rows, tuple(missing))


def _arm_of(prediction: Prediction, spec: BenchSpec) -> BenchArm | None:
    """The benchmark's arm that the prediction is about: its very recipe before a looser match."""
    matching = [arm for arm in spec.arms if arm.recipe is not None and same_claim(prediction.recipe, arm.recipe)]
    return next((arm for arm in matching if arm.recipe == prediction.recipe), matching[0] if matching else None)


def _share_problems(earlier: BenchSpec, later: BenchSpec) -> bool:
    """Whether two benchmarks draw from the same problems: the same files and split, and a common subject."""
    same = earlier.split == later.split and earlier.problems.problems == later.problems.problems
    return same and bool(set(earlier.subjects) & set(later.subjects))


def _answers(items: Iterable[BenchItem], spec: BenchSpec) -> dict[str, _Answers]:
    """Right or wrong by arm and (subject, problem); control corpora are no part of the claim."""
    answers: dict[str, _Answers] = {arm.name: {} for arm in spec.arms}
    for item in items:
        if item.subject not in spec.problems.control_names:
            right = item.grade.exact_match is GradeStatus.CORRECT
            answers[item.arm][item.subject, item.problem_id] = right
    return answers


def _judged(
    arm: str, controls: Mapping[LayerControl, Sequence[str]], answers: Mapping[str, _Answers], spec: BenchSpec
) -> tuple[ControlOutcome, ...]:
    tested = []
    for kind, names in controls.items():
        if kind == "random" and len(names) < FEWEST_DRAWS:
            continue  # one draw says nothing about the next
        ours = answers[arm]
        common = [key for key in ours if all(key in answers[name] for name in names)]
        subjects = [subject for subject in spec.subjects if any(key[0] == subject for key in common)]
        if not subjects:
            continue
        keys = {subject: [key for key in common if key[0] == subject] for subject in subjects}
        found = difference_to_draws(
            {subject: np.array([ours[key] for key in keys[subject]]) for subject in subjects},
            {
                subject: np.array([[answers[name][key] for key in keys[subject]] for name in names])
                for subject in subjects
            },
        )
        tested.append((kind, len(names), len(common), found))
    corrected = holm([found.p for *_, found in tested]) if tested else []
    return tuple(
        ControlOutcome(
            control=kind,
            arms=arms,
            n=n,
            difference=found.difference,
            ci_low=found.low,
            ci_high=found.high,
            p=found.p,
            p_holm=float(p_holm),
            verdict=verdict(found.low, found.high, float(p_holm), spec.margin),
        )
        for (kind, arms, n, found), p_holm in zip(tested, corrected, strict=True)
    )
