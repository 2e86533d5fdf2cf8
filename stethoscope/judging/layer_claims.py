"""Claims about layers: compares an arm with equally strong edits of other layers, never by counting significant
subjects.

The arm's answers are compared with the mean of random draws of the same size, with an interval over problems and draws
(`statistics.difference_to_draws`), and with the bottom, last and all layers. Holm's correction is over these controls
of one arm.
"""

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence

import numpy as np

from stethoscope.judging.arms import LAYER_CONTROLS, LayerControl, group_of, layer_control
from stethoscope.records import BenchArm, BenchSpec, GradeStatus
from stethoscope.results import BenchItem, LayerClaim
from stethoscope.statistics import (
    cannot_reach,
    difference_to_draws,
    holm,
    smallest_holm_p,
    smallest_p_to_draws,
    verdict,
)

FEWEST_DRAWS = 2
Key = tuple[str, str]
Decide = Callable[[float, float, float], str | None]  # bounds of the interval and Holm's p -> verdict, if any
Answers = Mapping[str, Mapping[Key, bool]]  # correctness by arm and (subject, problem)


def decider(margin: float, no_verdict: str | None) -> Decide:
    """Return a function that maps an interval and Holm's p to one of the four verdicts, or to None if there are no
    verdicts."""
    return lambda low, high, holm_p: None if no_verdict else verdict(low, high, holm_p, margin)


def layer_claims(
    spec: BenchSpec, items: Iterable[BenchItem], decide: Decide, idle: Collection[str] = ()
) -> tuple[LayerClaim, ...]:
    """Return the claims about the choice of layers for every arm of `spec` that is not a control.

    Arms that change nothing (`idle`) are excluded, also as controls.
    """
    answers = answers_by_arm(spec, items)
    found: list[LayerClaim] = []
    for arm in spec.arms:
        if group_of(arm) == "recipe" and arm.name not in idle:
            found.extend(claims_of(arm, controls_of(arm, spec.arms, idle), answers, decide))
    return tuple(found)


def controls_of(arm: BenchArm, arms: Sequence[BenchArm], idle: Collection[str] = ()) -> dict[LayerControl, list[str]]:
    """Return the names of the arms that are controls of `arm`'s layers, by role, in the order of LAYER_CONTROLS.

    Args:
        idle: arms that change nothing, which are not controls.
    """
    if arm.recipe is None:
        return {}
    kinds = {other.name: layer_control(other, arm.recipe) for other in arms if other.name not in idle}
    found: dict[LayerControl, list[str]] = {
        kind: [name for name, of_name in kinds.items() if of_name == kind] for kind in LAYER_CONTROLS
    }
    return {kind: names for kind, names in found.items() if names}


def answers_by_arm(spec: BenchSpec, items: Iterable[BenchItem]) -> dict[str, dict[Key, bool]]:
    """Return correctness by arm and (subject, problem); control corpora are excluded."""
    answers: dict[str, dict[Key, bool]] = {arm.name: {} for arm in spec.arms}
    for item in items:
        if item.subject not in spec.problems.control_names:
            right = item.grade.exact_match is GradeStatus.CORRECT
            answers[item.arm][item.subject, item.problem_id] = right
    return answers


def claims_of(
    arm: BenchArm, controls: Mapping[LayerControl, Collection[str]], answers: Answers, decide: Decide
) -> tuple[LayerClaim, ...]:
    """Return one claim per control with common problems; a single random draw gets no claim, because its variance is
    unknown."""
    tested, smallest = [], []
    for kind, names in controls.items():
        if kind == "random" and len(names) < FEWEST_DRAWS:
            continue
        common = [key for key in answers[arm.name] if all(key in answers[name] for name in names)]
        if not common:
            continue
        keys = {
            subject: [key for key in common if key[0] == subject] for subject in dict.fromkeys(s for s, _ in common)
        }
        ours = {subject: np.array([answers[arm.name][key] for key in of]) for subject, of in keys.items()}
        draws = {
            subject: np.array([[answers[name][key] for key in of] for name in names]) for subject, of in keys.items()
        }
        sizes = {subject: len(of) for subject, of in keys.items()}
        tested.append((kind, len(names), len(common), difference_to_draws(ours, draws)))
        smallest.append(smallest_p_to_draws(sizes, len(names)))
    p = [found.p for *_, found in tested]
    corrected, floors = holm(p).tolist(), smallest_holm_p(p, smallest)
    return tuple(
        LayerClaim(
            arm=arm.name,
            control=kind,
            draws=n_draws,
            n=n,
            difference=found.difference,
            ci_low=found.low,
            ci_high=found.high,
            p=found.p,
            p_holm=p_holm,
            verdict=decide(found.low, found.high, p_holm),
            cannot_be_significant=cannot_reach(floor),
        )
        for (kind, n_draws, n, found), p_holm, floor in zip(tested, corrected, floors, strict=True)
    )
