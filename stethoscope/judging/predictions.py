"""Frozen predictions about layers, and whether a later benchmark confirms them.

A claim about layers is tested by the paired difference between the recipe and equally strong edits of other layers,
never by counting significant subjects: the mean of random draws of the same size, with an interval over problems and
draws, and the bottom, last and all layers. Holm's correction is over these controls, and each comparison gets one of
the four verdicts. A claim is a prediction only if it was frozen before any answer to those problems.
"""

import random
from collections.abc import Collection, Iterable, Sequence
from typing import Literal, NamedTuple

from stethoscope.judging.arms import LAYER_CONTROLS, LayerControl
from stethoscope.judging.layer_claims import FEWEST_DRAWS, answers_by_arm, claims_of, controls_of, decider
from stethoscope.records import BenchArm, BenchSpec, EditRecipe, Prediction, RawEdit
from stethoscope.results import BenchResult, LayerClaim

Picked = Literal["top", "bottom", "random", "hand"]


class BenchRun(NamedTuple):
    """A benchmark run: its position in the store's sequence of runs, and its spec."""

    run_id: str
    sequence: int
    spec: BenchSpec


class Outcome(NamedTuple):
    """Result of a benchmark for a prediction.

    Attributes:
        arm: the benchmark's arm that the prediction is about.
        same_recipe: False if the arm edits the same layers with the raw task vector but differs otherwise, for example
            in strengths.
        frozen_first: whether it was frozen before the benchmark started; otherwise it does not count as a prediction.
        used_before: earlier runs in which this edit answered problems of the same split.
        rows: one per control in the benchmark, in the order random, bottom, last, all.
        missing: controls to add; "random" if there are fewer than two draws.
    """

    arm: str
    same_recipe: bool
    frozen_first: bool
    used_before: tuple[str, ...]
    rows: tuple[LayerClaim, ...]
    missing: tuple[LayerControl, ...]

    @property
    def foretold(self) -> bool:
        """Whether it was frozen before the benchmark and before any answer to its problems."""
        return self.frozen_first and not self.used_before


def random_pick(n_layers: int, n: int, seed: int) -> tuple[int, ...]:
    """Return `n` distinct layers of `n_layers` in ascending order, the same for the same seed."""
    return tuple(sorted(random.Random(f"pick-{seed}-{n_layers}").sample(range(n_layers), min(n, n_layers))))


def how_picked(layers: Collection[int], order: Sequence[int], n_layers: int, seed: int | None) -> Picked:
    """Return how `layers` were picked, derived from what can be checked and not from what the user says.

    Args:
        order: the layers of the subject, best first.
        seed: seed of the last random pick; None if there was none.
    """
    n, chosen = len(layers), set(layers)
    if seed is not None and chosen == set(random_pick(n_layers, n, seed)):
        return "random"
    if n and chosen == set(order[:n]):
        return "top"
    return "bottom" if n and chosen == set(order[-n:]) else "hand"


def same_claim(prediction: EditRecipe, recipe: EditRecipe) -> bool:
    """Return whether `recipe` tests the prediction: it is the same recipe, or edits the same layers with the raw task
    vector."""
    return prediction == recipe or (
        isinstance(recipe.edit_type, RawEdit)
        and recipe.model == prediction.model
        and recipe.task_vector == prediction.task_vector
        and recipe.layers.keys() == prediction.layers.keys()
    )


def runs_of(recipe: EditRecipe, runs: Iterable[BenchRun]) -> list[BenchRun]:
    """Return the benchmarks that contain `recipe`, in any state."""
    return [run for run in runs if any(arm.recipe and same_claim(recipe, arm.recipe) for arm in run.spec.arms)]


def outcome(
    prediction: Prediction, runs_before: int, run: BenchRun, result: BenchResult, others: Iterable[BenchRun]
) -> Outcome | None:
    """Return the outcome of `run` for `prediction`; None if it does not test it.

    Args:
        runs_before: position of the newest run when the prediction was frozen.
        result: result of `run`.
        others: all other benchmarks, to find earlier answers to the same problems.
    """
    arm = _arm_of(prediction, run.spec)
    if arm is None or arm.recipe is None:
        return None
    used = [
        earlier.run_id
        for earlier in runs_of(prediction.recipe, others)
        if earlier.run_id != run.run_id and earlier.sequence <= runs_before and _share_problems(earlier.spec, run.spec)
    ]
    found = {} if arm.name in result.idle else controls_of(arm, run.spec.arms, result.idle)
    missing: list[LayerControl] = []
    for kind in LAYER_CONTROLS:
        if len(found.get(kind, ())) < (FEWEST_DRAWS if kind == "random" else 1):
            missing.append(kind)
    decide = decider(run.spec.margin, result.no_verdict)
    rows = claims_of(arm, found, answers_by_arm(run.spec, result.items), decide)
    same = arm.recipe == prediction.recipe
    return Outcome(arm.name, same, run.sequence > runs_before, tuple(used), rows, tuple(missing))


def _arm_of(prediction: Prediction, spec: BenchSpec) -> BenchArm | None:
    """Return the benchmark's arm for the prediction: the same recipe if present, otherwise a looser match."""
    matching = [arm for arm in spec.arms if arm.recipe is not None and same_claim(prediction.recipe, arm.recipe)]
    return next((arm for arm in matching if arm.recipe == prediction.recipe), matching[0] if matching else None)


def _share_problems(earlier: BenchSpec, later: BenchSpec) -> bool:
    """Return whether two benchmarks use the same problems: the same files and split, and a common subject."""
    same = earlier.split == later.split and earlier.problems.problems == later.problems.problems
    return same and bool(set(earlier.subjects) & set(later.subjects))
