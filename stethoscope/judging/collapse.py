"""The collapse alarm, which detects arms whose answers are degenerate.

Six faults are counted: no marker sentence, truncated at the limit, ending in a loop, no answer found, unparsable, timed
out. For each fault, arm and reference are compared on the problems of a subject that both have answered. The alarm is
raised if the share rises by at least 10 points and Newcombe's paired 99.9% interval is above zero. A standard set tests
about 400 such shares, so that a false alarm occurs once in several sets.
"""

from collections.abc import Callable, Iterable

from stethoscope.records import GradeStatus
from stethoscope.results import ArmRow, BenchItem
from stethoscope.statistics import newcombe_paired

LEAST_RISE = 0.10
LEVEL = 0.999

FAULTS: dict[str, Callable[[BenchItem], bool]] = {
    "without the marker sentence": lambda item: not item.grade.marked,
    "truncated at the token limit": lambda item: item.truncated,
    "ending in a loop": lambda item: item.repetitive,
    "without an answer": lambda item: item.grade.exact_match is GradeStatus.NO_ANSWER,
    "unparsable": lambda item: item.grade.exact_match is GradeStatus.UNPARSABLE,
    "timed out": lambda item: item.grade.exact_match is GradeStatus.TIMEOUT,
}


def collapse(items: Iterable[BenchItem], reference: Iterable[BenchItem], row: ArmRow) -> str | None:
    """Return the alarm text for the arm and subject of `row`; None if there is no alarm (see the module for the rule).

    Args:
        items: answers of the arm. reference: answers of the reference. Subjects other than the row's are ignored.
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
