"""Compare two stored benchmarks: an arm of each, paired on the problems that both have answered.

Two runs are comparable if everything except the recipe is the same: model, prompts, token limit, the reference's
weights, and the problem's text and gold answer. The numbers are computed as in `comparison`. There is no verdict,
because the results of both runs were already known.
"""

from dataclasses import dataclass

from stethoscope.judging.comparison import arm_rows, compare
from stethoscope.judging.layer_claims import decider
from stethoscope.records import BenchArm, BenchSpec
from stethoscope.results import BenchItem, BenchResult

AFTER_THE_FACT = (
    "These runs were compared after their results were known: the intervals and p values are exploratory only. A "
    "verdict needs both recipes as arms of one benchmark."
)


@dataclass(frozen=True, slots=True)
class TwoRuns:
    """One arm of each of two runs on their shared problems.

    Attributes:
        paired: a benchmark with two arms, the first run's as reference; None if the runs are not comparable.
        obstacles: sentences saying why they are not comparable; empty if they are.
        notes: sentences about limits of the comparison.
    """

    paired: BenchResult | None
    obstacles: tuple[str, ...]
    notes: tuple[str, ...] = ()


def pair_runs(first: BenchResult, second: BenchResult, arms: tuple[str, str], labels: tuple[str, str]) -> TwoRuns:
    """Return the paired difference, second run's arm minus first run's, on the shared problems.

    Args:
        arms: an arm's name in the first run and one in the second.
        labels: distinct names of the two in the paired result.
    """
    assert labels[0] != labels[1], f"labels={labels}"
    obstacles = _obstacles(first.spec, second.spec)
    if obstacles:
        return TwoRuns(None, obstacles)
    items = _shared(first, second, arms)
    if not items[0]:
        return TwoRuns(None, ("No problem was answered by both arms: the runs drew different problems.",))
    known = [pair for pair in zip(*items, strict=True) if all(item.prompt_id for item in pair)]
    if differing := sum(ours.prompt_id != theirs.prompt_id for ours, theirs in known):
        said = f"Different prompts: {differing} of {len(items[0])} shared problems had prompts with different tokens."
        return TwoRuns(None, (said,))
    return TwoRuns(_paired(first, second, arms, labels, items), (), _notes(first, second, arms, len(items[0])))


def _obstacles(first: BenchSpec, second: BenchSpec) -> tuple[str, ...]:
    """Return one sentence for each difference other than the recipe."""
    said = []
    if first.model != second.model:
        said.append(f"Different models: {first.model.id} and {second.model.id} (or their revision or dtype).")
    if first.arms[0].recipe != second.arms[0].recipe:
        said.append("Different references: the first arms have different weights.")
    if first.problems.shots != second.problems.shots:
        said.append(f"Different prompts: shots from {first.problems.shots} and {second.problems.shots}.")
    if first.chat_template != second.chat_template:
        said.append("Different prompt formats: one with the chat template, one without.")
    if first.max_new_tokens != second.max_new_tokens:
        said.append(f"Different limits: answers of at most {first.max_new_tokens} and {second.max_new_tokens} tokens.")
    return tuple(said)


def _by_problem(result: BenchResult, arm: str) -> dict[tuple[str, str, str], BenchItem]:
    return {(item.subject, item.problem_id, item.gold): item for item in result.items if item.arm == arm}


def _shared(
    first: BenchResult, second: BenchResult, arms: tuple[str, str]
) -> tuple[tuple[BenchItem, ...], tuple[BenchItem, ...]]:
    """Return both arms' answers to the shared problems, in the same order."""
    ours, theirs = _by_problem(first, arms[0]), _by_problem(second, arms[1])
    common = [key for key in ours if key in theirs]
    return tuple(ours[key] for key in common), tuple(theirs[key] for key in common)


def _paired(
    first: BenchResult,
    second: BenchResult,
    arms: tuple[str, str],
    labels: tuple[str, str],
    items: tuple[tuple[BenchItem, ...], tuple[BenchItem, ...]],
) -> BenchResult:
    named = {
        label: [item.model_copy(update={"arm": label, "diverges_at": None}) for item in of_arm]
        for label, of_arm in zip(labels, items, strict=True)
    }
    subjects = tuple(subject for subject in second.spec.subjects if any(item.subject == subject for item in items[0]))
    recipe_ids = [
        next((row.recipe_id for row in result.arms if row.arm == arm), None)
        for result, arm in ((first, arms[0]), (second, arms[1]))
    ]
    both = (first.spec, second.spec)
    chosen = [
        BenchArm(name=label, recipe=next(known.recipe for known in spec.arms if known.name == arm))
        for spec, arm, label in zip(both, arms, labels, strict=True)
    ]
    found = compare(
        named,
        labels[0],
        decider(second.spec.margin, AFTER_THE_FACT),
        second.spec.seed,
        subjects=subjects,
        controls=second.spec.problems.control_names,
    )
    return BenchResult(
        spec=second.spec.model_copy(update={"arms": tuple(chosen), "subjects": subjects}),
        arms=tuple(
            row
            for label, recipe_id in zip(labels, recipe_ids, strict=True)
            for row in arm_rows(named[label], recipe_id, subjects)
        ),
        comparisons=found.comparisons,
        totals=found.totals,
        items=tuple(item for of_arm in named.values() for item in of_arm),
        certificates={
            label: result.certificates[arm]
            for label, arm, result in zip(labels, arms, (first, second), strict=True)
            if arm in result.certificates
        },
        complete=first.complete and second.complete,
        no_verdict=AFTER_THE_FACT,
    )


def _notes(first: BenchResult, second: BenchResult, arms: tuple[str, str], shared: int) -> tuple[str, ...]:
    answered = [len(_by_problem(result, arm)) for result, arm in ((first, arms[0]), (second, arms[1]))]
    said = [f"{shared} problems are shared; the first arm answered {answered[0]}, the second {answered[1]}."]
    if not (first.complete and second.complete):
        said.append("At least one run is partial; only its finished blocks are compared.")
    ours, theirs = (_by_problem(result, result.spec.arms[0].name) for result in (first, second))
    common = [key for key in ours if key in theirs]
    if changed := sum(ours[key].completion != theirs[key].completion for key in common):
        said.append(
            f"The references, of the same weights, answered {changed} of {len(common)} shared problems differently: "
            "the runs used different settings, or the weights behind a name have changed."
        )
    return tuple(said)
