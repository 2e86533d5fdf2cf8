"""Problems in MATH's format: named by the hash of their text, and sampled so that samples nest.

A record holds `problem`, `solution`, a `subject` (or MATH's `type`) and, if it likes, the `answer`; where it does not,
the answer is the last \\boxed{...} of the solution, else what stands in its final sentence. A sample is the first n
problems of a subject in the order of sha256(seed, problem id): a larger n contains the smaller sample, and neither
the order of the file nor other problems change it.
"""

import hashlib
import re
from collections.abc import Sequence
from dataclasses import dataclass

from stethoscope.errors import CorpusError
from stethoscope.records import SampleSize, sample_size

_FINAL_SENTENCE = re.compile(r"Final Answer: The final answer is(.*?)\. I hope it is correct\.")


@dataclass(frozen=True, slots=True)
class Problem:
    """One problem; `answer` is the gold answer's text as written (not normalised), `problem_id` 16 hex digits."""

    problem: str
    solution: str
    subject: str
    answer: str
    problem_id: str


def problem_id_of(problem: str) -> str:
    """Return the first 16 hex digits of the sha256 of the problem's text."""
    return hashlib.sha256(problem.encode()).hexdigest()[:16]


def subject_of(name: str) -> str:
    """Return MATH's name of a subject as ours: "Counting & Probability" is counting_and_probability."""
    return re.sub(r"[^a-z0-9]+", "_", name.lower().replace("&", "and")).strip("_")


def last_boxed(solution: str) -> str | None:
    """Return the content of the last \\boxed{...} (or "\\boxed x") as lm-eval reads it, else None."""
    if "\\boxed " in solution:
        return solution.split("\\boxed ")[-1].split("$")[0]
    start = solution.rfind("\\boxed{")
    if start < 0:
        return None
    depth = 0
    for position in range(start, len(solution)):
        depth += {"{": 1, "}": -1}.get(solution[position], 0)
        if depth == 0 and solution[position] == "}":
            return solution[start + len("\\boxed{") : position]
    return None


def answer_of(solution: str) -> str | None:
    """Return the gold answer that a solution states, boxed or in Minerva's final sentence; None where there is none."""
    boxed = last_boxed(solution)
    if boxed is not None:
        return boxed.strip()
    sentences = _FINAL_SENTENCE.findall(solution)
    if not sentences:
        return None
    answer = sentences[-1].strip()
    return answer[1:-1] if len(answer) > 1 and answer[0] == answer[-1] == "$" else answer


def text_field(record: dict[str, object], field: str, where: str) -> str:
    """Return the text in `field`, or raise `CorpusError` naming `where` it is missing."""
    value = record.get(field)
    if not isinstance(value, str) or not value.strip():
        problem = f"{where} has no {field}" if value is None else f"{where} has a bad {field}"
        got = f"only {', '.join(map(str, record))}"[:80] if value is None else repr(value)[:80]
        raise CorpusError(problem, got=got, expected="a non-empty string")
    return value


def problem_of(record: object, where: str) -> Problem:
    """Return the problem that `record` holds.

    Raises:
        CorpusError: a field that is missing, empty or no text; the message begins with `where`.
    """
    if not isinstance(record, dict):
        raise CorpusError(f"{where} is not a JSON object", got=type(record).__name__)
    problem, solution = text_field(record, "problem", where), text_field(record, "solution", where)
    subject = text_field(record, "subject" if "subject" in record or "type" not in record else "type", where)
    answer = str(record["answer"]) if isinstance(record.get("answer"), int | float) else record.get("answer")
    if answer is None:
        answer = answer_of(solution)
    if not isinstance(answer, str) or not answer.strip():
        raise CorpusError(
            f"{where} has no answer",
            expected="a field answer, a \\boxed{...} or the final sentence in the solution",
        )
    try:
        (solution + answer).encode()
        return Problem(problem, solution, subject_of(subject), answer, problem_id_of(problem))
    except UnicodeEncodeError as error:
        raise CorpusError(f"{where} holds half a surrogate pair", got=error.reason) from error


def asked_problems(problems: Sequence[Problem], subject: str, n: SampleSize, seed: int) -> list[Problem]:
    """Return a seeded permutation's first n problems of `subject`; all of them for "all", or where there are fewer."""

    def rank(problem: Problem) -> str:
        return hashlib.sha256(f"{seed}/{problem.problem_id}".encode()).hexdigest()

    ranked = sorted((problem for problem in problems if problem.subject == subject), key=rank)
    return ranked[: sample_size(n, len(ranked))]


def sample_problems(problems: Sequence[Problem], subject: str, n: int, seed: int) -> list[Problem]:
    """Return exactly n problems of `subject`, as `asked_problems` does: a larger n contains the smaller sample.

    Raises:
        CorpusError: the subject has none, or fewer than n.
    """
    assert n > 0, f"n={n} must be positive"
    found = asked_problems(problems, subject, n, seed)
    if not found:
        known = sorted({problem.subject for problem in problems})
        raise CorpusError("no problems of that subject", got=repr(subject), expected="one of " + ", ".join(known))
    if n > len(found):
        raise CorpusError(
            f"too few problems in {subject}", got=f"{len(found)}", expected=f"{n}", next_step="Ask for fewer."
        )
    return found
