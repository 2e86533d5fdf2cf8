"""Problems in MATH's format, identified by the hash of their text, with nested samples.

A record holds `problem`, `solution`, a `subject` (or MATH's `type`) and optionally the `answer`; without it, the answer
is the last \\boxed{...} of the solution, or else is read from its final sentence. A sample is the first n problems of a
subject in the order of sha256(seed, problem id): a larger n contains the smaller sample, and neither the order of the
file nor other problems change it.
"""

import hashlib
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from decimal import Decimal

from stethoscope.errors import CorpusError
from stethoscope.records import SampleSize, sample_size

_FINAL_SENTENCE = re.compile(r"Final Answer: The final answer is(.*?)\. I hope it is correct\.")
_BOX = re.compile(r"\\(?:boxed|fbox)(?![a-zA-Z])\s*")
_BRACE = re.compile(r"\\.|[{}]", re.DOTALL)


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
    """Return our name for MATH's subject: "Counting & Probability" is counting_and_probability."""
    return re.sub(r"[^a-z0-9]+", "_", name.lower().replace("&", "and")).strip("_")


def last_boxed(solution: str) -> str | None:
    """Return the content of the last \\boxed{...}, \\fbox{...} or "\\boxed x" that is not empty, else None.

    lm-eval lets a "\\boxed " anywhere, as in prose about the command, win over a box behind it; here the last box in
    braces, or without them inside $...$, wins. Without braces the content goes to the next $. Where solutions box one
    answer, as MATH's do, both read the same.
    """
    loose = None
    for found in reversed(list(_BOX.finditer(solution))):
        start = found.end()
        if solution[start : start + 1] == "{":
            content = _braced(solution, start)
        else:
            content = solution[start:].split("$")[0]
            if solution[: found.start()].count("$") % 2 == 0:  # not in mathematics
                loose = loose or content
                continue
        if content is not None and content.strip():
            return content
    return loose


def _braced(text: str, start: int) -> str | None:
    """Return the content of the braces that open at `start`, \\{ and \\} aside; None if they never close."""
    depth = 0
    for brace in _BRACE.finditer(text, start):
        depth += {"{": 1, "}": -1}.get(brace[0], 0)
        if depth == 0 and brace[0] == "}":
            return text[start + 1 : brace.start()]
    return None


def answer_of(solution: str) -> str | None:
    """Return the gold answer in a solution, boxed or in Minerva's final sentence; None if there is none."""
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
        problem = f"{where} has no {field}" if value is None else f"{where} has an invalid {field}"
        got = f"only {', '.join(map(str, record))}"[:80] if value is None else repr(value)[:80]
        raise CorpusError(problem, got=got, expected="a non-empty string", next_step="Correct it, or remove it.")
    return value


def _given_answer(value: object, where: str) -> str | None:
    """Return the text of a record's answer, with numbers written without an exponent; None if it has none.

    Raises:
        CorpusError: an invalid answer: a boolean, a list, NaN, infinity, or an empty text.
    """
    if isinstance(value, float) and math.isfinite(value):
        return f"{Decimal(repr(value)):f}"
    if isinstance(value, int) and not isinstance(value, bool):
        return str(value)
    if value is None:
        return None
    if not isinstance(value, str) or not value.strip():
        raise CorpusError(
            f"{where} has an invalid answer",
            got=repr(value)[:80],
            expected="a text or a number",
            next_step="Correct it, or remove the field to read the answer from the solution.",
        )
    return _without_dollars(value.strip())


def _without_dollars(answer: str) -> str:
    """Return `answer` without the $ around all of it."""
    whole = len(answer) > 2 and answer[0] == answer[-1] == "$" and "$" not in answer[1:-1]
    return answer[1:-1].strip() if whole else answer


def problem_of(record: object, where: str) -> Problem:
    """Return the problem in `record`.

    Raises:
        CorpusError: a field that is missing, empty or not text; the message starts with `where`.
    """
    if not isinstance(record, dict):
        raise CorpusError(
            f"{where} is not a JSON object",
            got=type(record).__name__,
            expected='an object such as {"problem": ..., "solution": ..., "type": ...}',
            next_step="Correct it, or remove it.",
        )
    problem, solution = text_field(record, "problem", where), text_field(record, "solution", where)
    subject = text_field(record, "subject" if "subject" in record or "type" not in record else "type", where)
    answer = _given_answer(record.get("answer"), where)
    if answer is None:
        answer = answer_of(solution)
    if answer is None or not answer.strip():
        raise CorpusError(
            f"{where} has no answer",
            expected="a field answer, a \\boxed{...} or the final sentence in the solution",
            next_step="Add the answer, or remove the problem.",
        )
    try:
        (solution + answer).encode()
        return Problem(problem, solution, subject_of(subject), answer, problem_id_of(problem))
    except UnicodeEncodeError as error:
        raise CorpusError(
            f"{where} contains a lone surrogate",
            got=error.reason,
            expected="text that can be written as UTF-8",
            next_step="Correct it, or remove it.",
        ) from error


def asked_problems(problems: Sequence[Problem], subject: str, n: SampleSize, seed: int) -> list[Problem]:
    """Return a seeded permutation's first n problems of `subject`; all of them for "all", or if there are fewer."""

    def rank(problem: Problem) -> str:
        return hashlib.sha256(f"{seed}/{problem.problem_id}".encode()).hexdigest()

    ranked = sorted((problem for problem in problems if problem.subject == subject), key=rank)
    return ranked[: sample_size(n, len(ranked))]


def sample_problems(problems: Sequence[Problem], subject: str, n: int, seed: int) -> list[Problem]:
    """Return exactly n problems of `subject`, like `asked_problems`: a larger n contains the smaller sample.

    Raises:
        CorpusError: the subject has none, or fewer than n.
    """
    assert n > 0, f"n={n} must be positive"
    found = asked_problems(problems, subject, n, seed)
    if not found:
        known = sorted({problem.subject for problem in problems})
        raise CorpusError(
            "no such subject",
            got=repr(subject),
            expected="one of " + ", ".join(known),
            next_step="Choose one of these.",
        )
    if n > len(found):
        raise CorpusError(
            f"too few problems in {subject}", got=f"{len(found)}", expected=f"{n}", next_step="Use fewer."
        )
    return found
