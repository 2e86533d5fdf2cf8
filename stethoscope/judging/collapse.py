"""The collapse alarm: does an arm still answer at all, or did the edit break it?

Six things can go wrong with an answer: no marker sentence, cut off at the limit, ending in a loop, no answer found,
unparsable, out of time. For each, arm and reference are compared on the problems of a subject that both have answered;
the alarm is raised when the share rose by at least 10 points and Newcombe's paired interval at 99.9% lies above zero.
A sound standard set tests some 400 such shares, so that a false alarm comes once in several sets.
"""

from collections.abc import Callable, Iterable

from stethoscope.records import GradeStatus
from stethoscope.results import ArmRow, BenchItem
from stethoscope.statistics import newcombe_paired

LEAST_RISE = 0.10
LEVEL = 0.999

FAULTS: dict[str, Callable[[BenchItem], bool]] = {
    "without the marker sentence": lambda item: not item.grade.marked,
    "cut off at the token limit": lambda item: item.truncated,
    "ending in a loop": lambda item: item.repetitive,
    "without an answer": lambda item: item.grade.exact_match is GradeStatus.NO_ANSWER,
    "unparsable": lambda item: item.grade.exact_match is GradeStatus.UNPARSABLE,
    "out of time": lambda item: item.grade.exact_match is GradeStatus.TIMEOUT,
}


def collapse(items: Iterable[BenchItem], reference: Iterable[BenchItem], row: ArmRow) -> str | None:
    """Return the alarm of the arm and subject of `row` in words, None where there is none (the rule: see the module).

    Args:
        items: answers of the arm. reference: those of the reference; other subjects than the row's are passed over.
    """
    theirs = {item.problem_id: item for item in reference if item.subject == row.subject}
    pairs = [
        (item, theirs[item.problem_id]) for item in items if item.subject == row.subject and item.problem_id in theirs
    ]
    if not pairs:
        return None
    said = []
    for fault, has in FAULTS.items():
        table = [0, 0, 0, 0]
        for ours, other in pairs:
            table[2 * (not has(ours)) + (not has(other))] += 1
        rise = newcombe_paired(*table, level=LEVEL)
        if rise.difference >= LEAST_RISE and rise.low > 0:
            ours, other = (table[0] + table[1]) / len(pairs), (table[0] + table[2]) / len(pairs)
            said.append(f"{100 * ours:.0f}% {fault} (reference {100 * other:.0f}%)")
    return f"Answers: {', '.join(said)}." if said else None
